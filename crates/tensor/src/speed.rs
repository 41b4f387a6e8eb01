//! How fast this machine multiplies matrices in each number type, measured once and remembered in the user's cache folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::product::linear;
use crate::write_atomic;

/// The libtorch that this build is made for.
pub const LIBTORCH_VERSION: &str = "2.11";

/// bf16 is worth its lost digits from this many times f32's speed on.
const WORTH_IT: f64 = 1.2;

/// What is timed, in the cache's keys: what was measured otherwise is measured again.
const METHOD: &str = "linear layers";

/// A product in each type is timed for this long, in turns.
const MEASURE_MILLISECONDS: u128 = 200;

/// Speed of a linear layer like those of a U-Net, GFLOP/s.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// In f32.
    pub f32: f64,
    /// In bf16.
    pub bf16: f64,
    /// In f16; 0 on a CPU, where it is not measured.
    pub f16: f64,
}

impl Speed {
    /// Times linear layers ([`linear`]) on `device`: half a second. The fastest run of each type counts, so that other programs on the
    /// machine disturb little.
    pub fn measure(device: Device) -> Self {
        let _no_grad = tch::no_grad_guard();
        let side = if device.is_cuda() { 4096 } else { 640 };
        let kinds = if device.is_cuda() { 3 } else { 2 };
        let pairs = [Kind::Float, Kind::BFloat16, Kind::Half].map(|kind| {
            let ones = |rows| Tensor::ones([rows, side], (kind, device));
            (ones(1024), ones(side))
        });
        // Reading a value waits for a GPU to finish.
        let product = |(x, weight): &(Tensor, Tensor)| linear(x, weight, None).get(0).get(0).double_value(&[]);
        pairs[..kinds].iter().for_each(|pair| {
            product(pair);
        });
        let mut best = [f64::INFINITY; 3];
        let started = Instant::now();
        while started.elapsed().as_millis() < MEASURE_MILLISECONDS * kinds as u128 {
            for (pair, best) in pairs[..kinds].iter().zip(&mut best) {
                let begun = Instant::now();
                product(pair);
                *best = best.min(begun.elapsed().as_secs_f64());
            }
        }
        let [f32, bf16, f16] = best.map(|seconds| 2.0 * 1024.0 * (side * side) as f64 / seconds / 1e9);
        Self { f32, bf16, f16 }
    }

    /// What [`Speed::measure`] said the first time on this machine: kept in the user's cache folder, by CPU, card, libtorch
    /// and device. A cache that cannot be read or written is no error; it is measured again then.
    pub fn of(device: Device) -> Self {
        Self::cached_in(cache_folder().as_deref(), device)
    }

    fn cached_in(folder: Option<&Path>, device: Device) -> Self {
        let file = folder.map(|folder| folder.join("speed.json"));
        let text = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let mut known: BTreeMap<String, Speed> = serde_json::from_str(&text).unwrap_or_default();
        let key = machine(device);
        if let Some(speed) = known.get(&key) {
            return *speed;
        }
        let speed = Self::measure(device);
        known.insert(key, speed);
        if let (Some(file), Ok(text)) = (file, serde_json::to_string_pretty(&known)) {
            let made = file.parent().is_some_and(|folder| std::fs::create_dir_all(folder).is_ok());
            // Only a saving of half a second is lost.
            let _ = made.then(|| write_atomic(&file, text.as_bytes()));
        }
        speed
    }

    /// The number type to keep a frozen base in on `device`, and why: on a CPU bf16 where it is at least 1.2 times as
    /// fast as f32; on a card bf16, or f16 where the card only emulates bf16 (less than half of f16's speed).
    pub fn best(self, device: Device) -> (Kind, String) {
        if device.is_cuda() {
            return match self.bf16 >= 0.5 * self.f16 {
                true => (Kind::BFloat16, "this card multiplies it natively".to_owned()),
                false => (Kind::Half, "this card has no fast bf16".to_owned()),
            };
        }
        let times = self.bf16 / self.f32;
        if times >= WORTH_IT {
            (Kind::BFloat16, format!("{times:.1} times as fast as f32 on this machine"))
        } else {
            (Kind::Float, format!("bf16 is only {times:.1} times as fast on this machine"))
        }
    }
}

/// `$XDG_CACHE_HOME/seedpo`, else `~/.cache/seedpo`; `None` where neither variable names an absolute path.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    caches.map(|caches| caches.join("seedpo"))
}

/// What the speed depends on: CPU model, cards, libtorch's version, how it is measured, device.
fn machine(device: Device) -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = ["model name", "cpu family", "model", "stepping", "CPU part"];
    let of_first = info.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_once(':'));
    let mut parts: Vec<String> =
        of_first.filter(|(name, _)| named.contains(&name.trim())).map(|(_, value)| value.trim().to_owned()).collect();
    if device.is_cuda() {
        let cards = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
        let texts = cards.filter_map(|card| std::fs::read_to_string(card.path().join("information")).ok());
        let model = |text: String| text.lines().find_map(|line| Some(line.strip_prefix("Model:")?.trim().to_owned()));
        parts.extend(texts.filter_map(model));
    }
    parts.push(std::env::consts::ARCH.to_owned());
    parts.push(format!("libtorch {LIBTORCH_VERSION}"));
    parts.push(METHOD.to_owned());
    parts.push(format!("{device:?}"));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_type_wins_and_f32_wins_a_draw() {
        let best = |f32, bf16, f16, device| Speed { f32, bf16, f16 }.best(device).0;
        assert_eq!(best(100.0, 119.0, 0.0, Device::Cpu), Kind::Float);
        assert_eq!(best(100.0, 121.0, 0.0, Device::Cpu), Kind::BFloat16);
        assert_eq!(best(100.0, 900.0, 1000.0, Device::Cuda(0)), Kind::BFloat16);
        assert_eq!(best(100.0, 100.0, 1000.0, Device::Cuda(0)), Kind::Half);
    }

    #[test]
    fn a_speed_is_measured_once_and_a_broken_cache_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("not/yet/there");
        let measured = Speed::cached_in(Some(&place), Device::Cpu);
        assert!(measured.f32 > 0.0 && measured.bf16 > 0.0);
        let known: BTreeMap<String, Speed> =
            serde_json::from_str(&std::fs::read_to_string(place.join("speed.json")).unwrap()).unwrap();
        assert_eq!(known.into_values().collect::<Vec<_>>(), [Speed::cached_in(Some(&place), Device::Cpu)]);
        std::fs::write(place.join("speed.json"), "{").unwrap();
        assert!(Speed::cached_in(Some(&place), Device::Cpu).f32 > 0.0);
        assert!(Speed::cached_in(Some(Path::new("/proc/nowhere")), Device::Cpu).f32 > 0.0);
        assert!(Speed::cached_in(None, Device::Cpu).f32 > 0.0);
    }
}
