//! The allocator of every program that links this crate, libtorch's C++ included.
//!
//! A step of a diffusion model frees and takes the same few gigabytes again and again. glibc hands large blocks back to
//! the kernel, which clears every page anew; jemalloc keeps them and packs them better.

#![cfg_attr(target_os = "linux", allow(unsafe_code))]

#[cfg(target_os = "linux")]
mod jemalloc {
    use std::ptr::null_mut;

    #[global_allocator]
    static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    /// jemalloc's settings: one arena, since one thread allocates nearly everything; freed pages are kept for a minute,
    /// large blocks as well.
    // SAFETY: jemalloc looks this symbol up and reads it as a C string; nothing writes to it.
    #[unsafe(export_name = "malloc_conf")]
    pub static SETTINGS: Option<&'static std::ffi::c_char> = Some(unsafe {
        &*c"narenas:1,oversize_threshold:0,dirty_decay_ms:60000,muzzy_decay_ms:-1,lg_extent_max_active_fit:8".as_ptr()
    });

    pub fn release() {
        // SAFETY: the name is a C string, and this command neither reads nor writes a value. 4096 stands for all arenas.
        unsafe {
            tikv_jemalloc_sys::mallctl(c"arena.4096.purge".as_ptr(), null_mut(), null_mut(), null_mut(), 0);
        }
    }
}

/// Gives freed memory back to the system, so that the resident set is what is in use.
pub fn release_freed() {
    #[cfg(target_os = "linux")]
    jemalloc::release();
}
