//! How much memory this process has used, and how it gives memory back.

/// The largest resident set of this process so far, in bytes; 0 where the system does not say.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

/// Makes every freed block of 1 MiB or more go back to the system at once.
///
/// For models whose activations have that size. glibc keeps such blocks for itself once it has seen one freed, and the
/// holes between them grow to gigabytes over an update of Stable Diffusion; asking the system anew costs little beside
/// what is computed in them. Nothing happens where the allocator is not glibc's.
#[allow(unsafe_code)]
pub fn give_back_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets one number of the allocator; glibc documents it as callable at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// The memory this machine could still give, in bytes; 0 where the system does not say.
pub fn available_bytes() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_peak_is_at_least_a_megabyte() {
        assert!(super::peak_rss_bytes() > 1 << 20);
    }
}
