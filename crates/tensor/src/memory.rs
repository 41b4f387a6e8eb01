//! How much memory this process uses, and how much it may.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tch::Device;

/// The largest resident set of this process so far, in bytes; 0 where the system does not say.
pub fn peak_rss_bytes() -> u64 {
    status_bytes("VmHWM:")
}

/// The resident set of this process now, in bytes; 0 where the system does not say.
pub fn rss_bytes() -> u64 {
    status_bytes("VmRSS:")
}

/// The resident set with freed memory given back to the system, in bytes; 0 where the system does not say.
pub fn settled_rss_bytes() -> u64 {
    crate::allocator::release_freed();
    rss_bytes()
}

/// What this process has in use on `device`, in bytes: on the CPU as [`settled_rss_bytes`]; on a card what is used of it.
/// 0 where the system does not say.
pub fn settled_bytes(device: Device) -> u64 {
    match device {
        Device::Cuda(index) => card_bytes(index).map_or(0, |(used, _)| used),
        _ => settled_rss_bytes(),
    }
}

/// The most that this process had in use on `device` so far, in bytes: on a card what is used of it now, since libtorch
/// keeps what it once took. 0 where the system does not say.
pub fn peak_bytes(device: Device) -> u64 {
    match device {
        Device::Cuda(_) => settled_bytes(device),
        _ => peak_rss_bytes(),
    }
}

/// The memory this machine could still give, in bytes; 0 where the system does not say.
pub fn available_bytes() -> u64 {
    field_bytes("/proc/meminfo", "MemAvailable:")
}

/// The most that this process could come to use on `device`, in bytes: on the CPU what it has and what the machine and
/// its control group could still give; on a card what is used of it and what is free. `None` where the system does not
/// say.
pub fn capacity_bytes(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => card_bytes(index).map(|(_, total)| total),
        _ => {
            let machine = Some(available_bytes()).filter(|&bytes| bytes > 0);
            let free = machine.into_iter().chain(group_free_bytes()).min()?;
            Some(rss_bytes() + free)
        }
    }
}

fn status_bytes(name: &str) -> u64 {
    field_bytes("/proc/self/status", name)
}

fn field_bytes(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// What this process's control groups (v2, else v1) still leave it, in bytes; `None` where none sets a limit.
fn group_free_bytes() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = |line: &str| line.rsplit(':').next().unwrap_or_default().trim_start_matches('/').to_owned();
    let of = |mark: &str| groups.lines().find(|line| line.contains(mark)).map(path);
    let (v1, v2) = (of(":memory:").unwrap_or_default(), of("0::").unwrap_or_default());
    let v2 = free_within(Path::new("/sys/fs/cgroup"), &v2, ["memory.max", "memory.current"]);
    let v1_files = ["memory.limit_in_bytes", "memory.usage_in_bytes"];
    v2.into_iter().chain(free_within(Path::new("/sys/fs/cgroup/memory"), &v1, v1_files)).min()
}

/// The least that the group at `path` below `root` and those above it leave; inside a container the path may not exist,
/// and `root` itself is the container's group.
fn free_within(root: &Path, path: &str, [limit, used]: [&str; 2]) -> Option<u64> {
    let folder: PathBuf = root.join(path);
    let read = |folder: &Path, name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let free = |folder: &Path| Some(read(folder, limit)?.saturating_sub(read(folder, used)?));
    folder.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(free).min()
}

/// Used and total memory of a card, in bytes, as the CUDA runtime says that libtorch has loaded.
#[allow(unsafe_code)]
fn card_bytes(index: usize) -> Option<(u64, u64)> {
    type SetDevice = unsafe extern "C" fn(libc::c_int) -> libc::c_int;
    type MemGetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> libc::c_int;
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: the names are those of the CUDA runtime's public C functions, whose signatures these are; both outputs are
    // valid for writing. Where the runtime is not loaded dlsym gives null.
    let failed = unsafe {
        let set = libc::dlsym(libc::RTLD_DEFAULT, c"cudaSetDevice".as_ptr());
        let get = libc::dlsym(libc::RTLD_DEFAULT, c"cudaMemGetInfo".as_ptr());
        if set.is_null() || get.is_null() {
            return None;
        }
        let set: SetDevice = std::mem::transmute(set);
        let get: MemGetInfo = std::mem::transmute(get);
        set(index as libc::c_int) != 0 || get(&raw mut free, &raw mut total) != 0
    };
    (!failed && total > 0).then(|| ((total - free) as u64, total as u64))
}

/// CPU time of this process so far, in seconds; 0 where the system does not say.
#[allow(unsafe_code)]
pub fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec on this stack.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } != 0;
    if failed { 0.0 } else { time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9 }
}

/// Watches the memory used between its start and [`PeakMeter::stop`].
///
/// On the CPU the resident set is looked at every millisecond, and where it sets a record for the process the kernel's
/// own high-water mark is taken. On a card libtorch keeps what it once took, so what is used at the end is the peak.
pub struct PeakMeter {
    device: Device,
    record: u64,
    stop: Arc<AtomicBool>,
    highest: Arc<AtomicU64>,
    watcher: Option<JoinHandle<()>>,
}

impl PeakMeter {
    /// Begins to watch, with freed memory given back to the system.
    pub fn start(device: Device) -> Self {
        crate::allocator::release_freed();
        let (stop, highest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(rss_bytes())));
        let (seen, done) = (highest.clone(), stop.clone());
        let watch = move || {
            while !done.load(Ordering::Relaxed) {
                seen.fetch_max(rss_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let watcher = (!device.is_cuda()).then(|| std::thread::spawn(watch));
        Self { device, record: peak_rss_bytes(), stop, highest, watcher }
    }

    /// The peak since the start, in bytes; 0 where the system does not say.
    pub fn stop(mut self) -> u64 {
        if self.device.is_cuda() {
            return settled_bytes(self.device);
        }
        self.end();
        let now = peak_rss_bytes();
        if now > self.record { now } else { self.highest.load(Ordering::Relaxed).max(rss_bytes()) }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Drop for PeakMeter {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_at_least_a_megabyte() {
        assert!(peak_rss_bytes() > 1 << 20);
        assert!(capacity_bytes(Device::Cpu).unwrap() > rss_bytes());
    }

    #[test]
    fn a_meter_sees_what_was_used_in_between_and_not_before() {
        let touch = |mib: usize| std::hint::black_box(vec![1u8; mib << 20]);
        drop(touch(200));
        let before = settled_rss_bytes();
        let meter = PeakMeter::start(Device::Cpu);
        let held = touch(64);
        std::thread::sleep(Duration::from_millis(20));
        drop(held);
        let seen = meter.stop() - before;
        assert!((60 << 20..120 << 20).contains(&seen), "{seen}");
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |folder: &str, limit: &str, used: &str| {
            let folder = root.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("memory.max"), limit).unwrap();
            std::fs::write(folder.join("memory.current"), used).unwrap();
        };
        let free = |path| free_within(root.path(), path, ["memory.max", "memory.current"]);
        write("a", "1000\n", "400\n");
        write("a/b", "max\n", "300\n");
        assert_eq!((free("a/b"), free("elsewhere")), (Some(600), None));
        write("a/b", "350\n", "300\n");
        assert_eq!(free("a/b"), Some(50));
    }
}
