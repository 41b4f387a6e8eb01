//! Choosing a device, and loading libtorch's CUDA library only where it is wanted.

use std::ffi::CString;

use tch::{Cuda, Device};

use crate::{Error, Result, tf32};

/// The device a name stands for: `cpu`, `cuda`, `cuda:1`, or `auto` (CUDA where it works, else the CPU).
///
/// Call it before the first tensor is made: naming CUDA loads `libtorch_cuda`, which the CPU build does not link. Where it
/// works, products of f32 matrices use TF32 from then on ([`tf32::allow`]).
/// Errors: [`Error::Device`] for an unknown name, or a CUDA device that is not there.
pub fn parse_device(name: &str) -> Result<Device> {
    let refuse = |reason: &str| Error::Device { asked: name.to_owned(), reason: reason.to_owned() };
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => Ok(if cuda_works() { Device::Cuda(0) } else { Device::Cpu }),
        _ => {
            let index = match name.strip_prefix("cuda") {
                Some("") => 0,
                Some(rest) => rest
                    .strip_prefix(':')
                    .and_then(|n| n.parse::<usize>().ok())
                    .ok_or_else(|| refuse("expected a number after `cuda:`, for example `cuda:0`"))?,
                None => return Err(refuse("expected `cpu`, `cuda`, `cuda:N` or `auto`")),
            };
            if !cuda_works() {
                return Err(refuse(
                    "CUDA does not work here: libtorch's CUDA library or a card is missing (`python3 scripts/setup_libtorch.py --gpu --force` fetches the library)",
                ));
            }
            let count = Cuda::device_count() as usize;
            if index >= count {
                return Err(refuse(&format!("this machine has {count} CUDA device(s), numbered from 0")));
            }
            Ok(Device::Cuda(index))
        }
    }
}

fn cuda_works() -> bool {
    load_cuda_library();
    let works = Cuda::is_available();
    if works {
        tf32::allow();
    }
    works
}

/// libtorch registers its CUDA kernels when the library is loaded; a CPU build does not link it.
#[allow(unsafe_code)]
fn load_cuda_library() {
    let name = CString::new("libtorch_cuda.so").unwrap_or_default();
    // SAFETY: dlopen with a valid C string; the library is libtorch's own and stays loaded for the process's life.
    unsafe {
        libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_device_are_refused() {
        assert_eq!(parse_device("cpu").unwrap(), Device::Cpu);
        for name in ["gpu", "cuda:x", "cuda0", ""] {
            let message = parse_device(name).unwrap_err().to_string();
            assert!(message.contains(&format!("`{name}`")), "{message}");
        }
    }
}
