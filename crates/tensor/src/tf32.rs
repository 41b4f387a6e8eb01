//! TF32: a card's matrix units multiply f32 matrices whose factors are rounded to ten bits behind the point.
//!
//! libtorch has it on for convolutions and off for matrix products; PyTorch's scripts switch it on there with
//! `torch.backends.cuda.matmul.allow_tf32 = True`. tch binds no such switch, so libtorch's own is called by its name.

use std::ffi::{CStr, c_void};

/// libtorch reads this variable itself: 1 is on, 0 is off. NVIDIA's `NVIDIA_TF32_OVERRIDE=0` is above it, for
/// convolutions as well.
const OVERRIDE: &str = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE";

/// Lets products of f32 matrices on a card use TF32, unless `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE` says what to do.
///
/// Gives what holds then; `None` where this libtorch has no such switch, which leaves it off. Nothing changes on the CPU.
pub fn allow() -> Option<bool> {
    if std::env::var_os(OVERRIDE).is_none() {
        set(true);
    }
    allowed()
}

/// Whether products of f32 matrices on a card may use TF32; `None` where this libtorch does not say.
#[allow(unsafe_code)]
pub fn allowed() -> Option<bool> {
    let (context, get) = (context()?, symbol(c"_ZNK2at7Context15allowTF32CuBLASEv")?);
    // SAFETY: `bool at::Context::allowTF32CuBLAS() const`, whose first argument is the object.
    unsafe {
        let get = std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(*const c_void) -> bool>(get);
        Some(get(context))
    }
}

#[allow(unsafe_code)]
fn set(on: bool) {
    let (Some(context), Some(set)) = (context(), symbol(c"_ZN2at7Context18setAllowTF32CuBLASEb")) else { return };
    // SAFETY: `void at::Context::setAllowTF32CuBLAS(bool)`, whose first argument is the object.
    unsafe {
        let set = std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(*mut c_void, bool)>(set);
        set(context, on);
    }
}

/// libtorch's settings, which live as long as the process.
#[allow(unsafe_code)]
fn context() -> Option<*mut c_void> {
    let get = symbol(c"_ZN2at13globalContextEv")?;
    // SAFETY: `at::Context& at::globalContext()`; a reference is returned as a pointer.
    unsafe {
        let get = std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn() -> *mut c_void>(get);
        Some(get()).filter(|context| !context.is_null())
    }
}

/// A function of the libtorch that is linked, by its C++ name.
#[allow(unsafe_code)]
fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the name is a C string; where nothing has it, dlsym gives null.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_switch_is_libtorch_s_own() {
        // The state is the process's: this is the only test that looks at it.
        if std::env::var_os(OVERRIDE).is_some() {
            return;
        }
        assert_eq!(allowed(), Some(false), "libtorch's default");
        assert_eq!(allow(), Some(true));
        set(false);
        assert_eq!(allowed(), Some(false));
    }
}
