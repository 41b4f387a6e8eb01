//! What writing holds in memory; alone in its process, which is what is measured.

use std::collections::BTreeMap;

use seedpo_tensor::memory::PeakMeter;
use seedpo_tensor::{Device, Kind, Tensor, WeightFile, write_weights_in};

#[test]
#[cfg(target_os = "linux")]
fn one_tensor_at_a_time_is_converted() {
    const MIB: i64 = 1 << 20;
    // 128 MiB in all, half as much as stored.
    let tensors: BTreeMap<String, Tensor> =
        (0..16).map(|i| (format!("t{i}"), Tensor::full([2 * MIB], f64::from(i), (Kind::Float, Device::Cpu)))).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let before = seedpo_tensor::memory::rss_bytes();
    let meter = PeakMeter::start(Device::Cpu);
    write_weights_in(&path, &tensors, &BTreeMap::new(), Some(Kind::Half)).unwrap();
    let used = meter.stop().saturating_sub(before) >> 20;
    assert!(used < 32, "{used} MiB");
    let file = WeightFile::open(&path).unwrap();
    assert!(file.names().all(|name| file.kind(name) == Some(Kind::Half)));
    assert_eq!(file.tensor("t7").unwrap(), Tensor::full([2 * MIB], 7.0, (Kind::Half, Device::Cpu)));
}
