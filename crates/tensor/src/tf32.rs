//! TF32: a card's matrix units multiply f32 matrices whose factors are rounded to ten bits behind the point.
//!
//! libtorch has it on for convolutions and off for matrix products; PyTorch's scripts switch it on there with
//! `torch.backends.cuda.matmul.allow_tf32 = True`. tch binds no such switch, so libtorch's own is called by its name.

use std::ffi::{CStr, c_int, c_void};

/// libtorch reads this variable itself: 1 is on, 0 is off, for products alone.
const TORCH_OVERRIDE: &str = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE";
/// NVIDIA's libraries read this one: at 0 none of them uses TF32, whatever libtorch allows.
const NVIDIA_OVERRIDE: &str = "NVIDIA_TF32_OVERRIDE";

/// What a card may use TF32 for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// Products of f32 matrices.
    pub products: bool,
    /// Convolutions of f32 tensors.
    pub convolutions: bool,
}

impl Allowed {
    /// Whether anything in f32 is computed with it.
    pub fn any(self) -> bool {
        self.products || self.convolutions
    }

    /// What is left of it under a value of `NVIDIA_TF32_OVERRIDE`.
    fn under(self, nvidia: Option<&str>) -> Self {
        if nvidia == Some("0") { Self { products: false, convolutions: false } } else { self }
    }
}

/// Lets products of f32 matrices on a card use TF32, unless `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE` says what to do.
///
/// Gives what holds then ([`allowed`]). Nothing changes on the CPU.
pub fn allow() -> Allowed {
    if std::env::var_os(TORCH_OVERRIDE).is_none() {
        set(true);
    }
    allowed()
}

/// What a card may use TF32 for, by libtorch's switches and `NVIDIA_TF32_OVERRIDE`. Where this libtorch does not say, its
/// defaults are taken to hold: no products, but convolutions. A card older than Ampere has none of it.
pub fn allowed() -> Allowed {
    let found = Allowed { products: products().unwrap_or(false), convolutions: convolutions().unwrap_or(true) };
    found.under(std::env::var(NVIDIA_OVERRIDE).ok().as_deref())
}

#[allow(unsafe_code)]
fn products() -> Option<bool> {
    let (context, get) = (context()?, symbol(c"_ZNK2at7Context15allowTF32CuBLASEv")?);
    // SAFETY: `bool at::Context::allowTF32CuBLAS() const`, whose first argument is the object.
    unsafe {
        let get = std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(*const c_void) -> bool>(get);
        Some(get(context))
    }
}

#[allow(unsafe_code)]
fn convolutions() -> Option<bool> {
    /// `Float32Backend::CUDA`, `Float32Op::CONV`, `Float32Precision::TF32` (ATen/Context.h).
    const CUDA: c_int = 1;
    const CONV: c_int = 1;
    const TF32: c_int = 2;
    type Get = unsafe extern "C-unwind" fn(*const c_void, c_int, c_int) -> c_int;
    let name = c"_ZNK2at7Context16float32PrecisionENS_14Float32BackendENS_9Float32OpE";
    let (context, get) = (context()?, symbol(name)?);
    // SAFETY: `Float32Precision at::Context::float32Precision(Float32Backend, Float32Op) const`; C++ passes an enum class
    // without a type of its own as an int.
    unsafe {
        let get = std::mem::transmute::<*mut c_void, Get>(get);
        Some(get(context, CUDA, CONV) == TF32)
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
    fn the_switches_are_libtorch_s_own() {
        // The state is the process's: this is the only test that looks at it.
        if [TORCH_OVERRIDE, NVIDIA_OVERRIDE].iter().any(|name| std::env::var_os(name).is_some()) {
            return;
        }
        assert_eq!((products(), convolutions()), (Some(false), Some(true)), "libtorch's defaults");
        assert_eq!(allow(), Allowed { products: true, convolutions: true });
        set(false);
        assert_eq!(allowed(), Allowed { products: false, convolutions: true });
    }

    #[test]
    fn nvidia_s_override_is_above_libtorch_s_switches() {
        let both = Allowed { products: true, convolutions: true };
        for (value, left) in [(None, true), (Some("1"), true), (Some("0"), false)] {
            let under = both.under(value);
            assert_eq!((under.products, under.convolutions, under.any()), (left, left, left), "{value:?}");
        }
        assert!(Allowed { products: false, convolutions: true }.any());
    }
}
