//! Backward passes of our own within libtorch's autograd: what a layer keeps for its backward pass is then decided here.
//!
//! libtorch keeps every operation's operands. Where weights are frozen, much of that is never read, or is sooner computed
//! again than kept (`docs/memory.md`).

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

type Backward = dyn Fn(&Tensor) -> Vec<Option<Tensor>> + Send;

unsafe extern "C" {
    fn seedpo_records() -> bool;
    fn seedpo_attach(
        output: *const C_tensor,
        inputs: *const *const C_tensor,
        count: usize,
        closure: *mut c_void,
        backward: extern "C" fn(*const c_void, *mut C_tensor, *mut *mut C_tensor) -> *mut c_char,
        drop: extern "C" fn(*mut c_void),
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn seedpo_gradients(
        output: *const C_tensor,
        gradient: *const C_tensor,
        inputs: *const *const C_tensor,
        count: usize,
        results: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn seedpo_backward(output: *const C_tensor, gradient: *const C_tensor) -> *mut c_char;
    fn seedpo_convolution_input_gradient(
        gradient: *const C_tensor,
        weight: *const C_tensor,
        input_size: *const i64,
        stride: i64,
        padding: i64,
        result: *mut *mut C_tensor,
    ) -> *mut c_char;
}

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a backward pass of [`with_backward`]: a panic there is caught and becomes an error of the whole
/// backward pass, with its message.
pub fn is_running() -> bool {
    RUNNING.get()
}

/// Whether a result of `input` belongs to a graph in which it may have a backward pass of its own: on the CPU, where this is
/// tested and measured; other devices keep libtorch's.
pub fn is_recorded(input: &Tensor) -> bool {
    // SAFETY: it reads a flag of this thread.
    input.requires_grad() && input.device() == Device::Cpu && unsafe { seedpo_records() }
}

/// What `forward` makes, without graph, joined to the graph of `inputs` by `backward`: from the gradient of the result to
/// those of the inputs, in their order, `None` where an input needs none.
///
/// What `backward` captures is kept until the backward pass is done, and is all that is kept. `forward` returns fresh memory.
/// Panics where libtorch refuses.
pub fn with_backward(
    inputs: &[&Tensor],
    forward: impl FnOnce() -> Tensor,
    backward: impl Fn(&Tensor) -> Vec<Option<Tensor>> + Send + 'static,
) -> Tensor {
    let output = tch::no_grad(forward);
    let closure: Box<Box<Backward>> = Box::new(Box::new(backward));
    let (inputs, mut joined) = (pointers(inputs), std::ptr::null_mut());
    // SAFETY: all tensors outlive the call; the node takes the closure and frees it once, by `drop_closure`.
    unsafe {
        let closure = Box::into_raw(closure).cast();
        let failed = seedpo_attach(
            output.as_ptr(),
            inputs.as_ptr(),
            inputs.len(),
            closure,
            call_closure,
            drop_closure,
            &mut joined,
        );
        unwrap(failed);
        Tensor::from_ptr(joined)
    }
}

/// `forward(inputs)`, of which the inputs alone are kept: the backward pass runs it again. It must draw nothing and change
/// nothing.
pub fn recomputed(inputs: &[&Tensor], forward: impl Fn(&[Tensor]) -> Tensor + Send + 'static) -> Tensor {
    let needed: Vec<bool> = inputs.iter().map(|input| input.requires_grad()).collect();
    let kept: Vec<Tensor> = inputs.iter().map(|input| input.detach()).collect();
    let output = tch::no_grad(|| forward(&kept));
    with_backward(
        inputs,
        || output,
        move |gradient| {
            let leaves: Vec<Tensor> =
                kept.iter().zip(&needed).map(|(input, needed)| input.detach().set_requires_grad(*needed)).collect();
            let output = tch::with_grad(|| forward(&leaves));
            let asked: Vec<&Tensor> = leaves.iter().filter(|leaf| leaf.requires_grad()).collect();
            let mut found = gradients(&output, gradient, &asked).into_iter();
            needed.iter().map(|needed| if *needed { found.next().flatten() } else { None }).collect()
        },
    )
}

/// The gradients of `⟨output, gradient⟩` for each of `inputs`, `None` for one that the output does not depend on; frees the
/// output's graph. Panics where libtorch refuses.
pub fn gradients(output: &Tensor, gradient: &Tensor, inputs: &[&Tensor]) -> Vec<Option<Tensor>> {
    let inputs = pointers(inputs);
    let mut results = vec![std::ptr::null_mut(); inputs.len()];
    // SAFETY: all tensors outlive the call; what it writes is owned, or null.
    unsafe {
        unwrap(seedpo_gradients(
            output.as_ptr(),
            gradient.as_ptr(),
            inputs.as_ptr(),
            inputs.len(),
            results.as_mut_ptr(),
        ));
        results.into_iter().map(|result| (!result.is_null()).then(|| Tensor::from_ptr(result))).collect()
    }
}

/// Adds the gradients of `⟨output, gradient⟩` to `.grad` of the leaves that the output depends on; frees its graph.
/// Errors: libtorch's message.
pub fn backward(output: &Tensor, gradient: &Tensor) -> Result<(), tch::TchError> {
    // SAFETY: both tensors outlive the call.
    unsafe { result(seedpo_backward(output.as_ptr(), gradient.as_ptr())) }.map_err(tch::TchError::Torch)
}

/// The gradient of a convolution (square kernel, stride and padding, one group, no dilation) for its input of `input_size`
/// `[B, C, h, w]`, from the result's and the weight. Panics where libtorch refuses.
pub fn convolution_input(
    gradient: &Tensor,
    weight: &Tensor,
    input_size: &[i64; 4],
    stride: i64,
    padding: i64,
) -> Tensor {
    let mut result = std::ptr::null_mut();
    // SAFETY: the tensors and the four numbers outlive the call; what it writes is owned.
    unsafe {
        let size = input_size.as_ptr();
        let (gradient, weight) = (gradient.as_ptr(), weight.as_ptr());
        unwrap(seedpo_convolution_input_gradient(gradient, weight, size, stride, padding, &mut result));
        Tensor::from_ptr(result)
    }
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr()).collect()
}

/// Panics with the message that a function of the bridge returned, as tch's own methods do.
#[allow(clippy::panic)]
unsafe fn unwrap(message: *mut c_char) {
    // SAFETY: passed on.
    if let Err(text) = unsafe { result(message) } {
        panic!("{text}");
    }
}

unsafe fn result(message: *mut c_char) -> Result<(), String> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the bridge returns a C string made by `strdup`, once.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    unsafe { libc::free(message.cast()) };
    Err(text)
}

extern "C" fn call_closure(
    closure: *const c_void,
    gradient: *mut C_tensor,
    results: *mut *mut C_tensor,
) -> *mut c_char {
    // SAFETY: the node passes the closure it was given, a live tensor, and room for one result for each input.
    let (backward, gradient) = unsafe { (&*closure.cast::<Box<Backward>>(), Tensor::clone_from_ptr(gradient)) };
    let before = RUNNING.replace(true);
    // A panic must not pass through libtorch.
    let found = catch_unwind(AssertUnwindSafe(|| tch::no_grad(|| backward(&gradient))));
    RUNNING.set(before);
    match found {
        Ok(found) => {
            for (i, mut tensor) in found.into_iter().enumerate().filter_map(|(i, tensor)| Some((i, tensor?))) {
                unsafe { *results.add(i) = tensor.as_mut_ptr() };
                std::mem::forget(tensor);
            }
            std::ptr::null_mut()
        }
        Err(payload) => {
            let text = CString::new(message(payload.as_ref()).replace('\0', " ")).unwrap_or_default();
            // SAFETY: a C string; the node frees the copy.
            unsafe { libc::strdup(text.as_ptr()) }
        }
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    text.unwrap_or_else(|| "a backward pass failed".to_owned())
}

extern "C" fn drop_closure(closure: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `with_backward`; the node calls this once.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(closure.cast::<Box<Backward>>()) })));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(name: &'static str, shape: &[i64]) -> Tensor {
        crate::NoiseKey::new(1, name).normal(shape).set_requires_grad(true)
    }

    /// The closed form: d⟨p, x² y⟩ is 2 p x y for x and p x² for y.
    #[test]
    fn recomputing_gives_the_gradients_of_the_plain_graph() {
        let (x, y, probe) = (draw("x", &[3, 4]), draw("y", &[3, 4]), draw("p", &[3, 4]).detach());
        // Within a larger graph on both sides: the factor 3 before, the 2 after.
        let inner = recomputed(&[&(&x * 3.0), &y], |of| of[0].square() * &of[1]);
        assert!(inner.requires_grad());
        let found = gradients(&(inner * 2.0), &probe, &[&x, &y]);
        let expected = [&probe * &x * &y * 36.0, &probe * x.square() * 18.0];
        for (found, expected) in found.into_iter().zip(expected) {
            // f32 products of three factors.
            assert!((found.unwrap() - expected).abs().max().double_value(&[]) < 1e-4);
        }
    }

    #[test]
    fn an_input_without_gradient_is_passed_over() {
        let (x, frozen) = (draw("x", &[5]), draw("y", &[5]).detach());
        let y = recomputed(&[&frozen, &x], |of| &of[0] * &of[1]);
        y.sum(tch::Kind::Float).backward();
        assert_eq!(x.grad(), frozen);
        assert!(!frozen.grad().defined());
    }

    /// What is captured is freed with the graph, be it by the backward pass or without one.
    #[test]
    fn what_is_captured_is_freed() {
        let captured = std::sync::Arc::new(());
        let make = |x: &Tensor| {
            let held = captured.clone();
            let held_on = move |gradient: &Tensor| {
                let _ = &held;
                vec![Some(gradient.copy())]
            };
            with_backward(&[x], || x.detach().copy(), held_on)
        };
        let x = draw("x", &[2]);
        let y = make(&x);
        assert_eq!(std::sync::Arc::strong_count(&captured), 2);
        y.sum(tch::Kind::Float).backward();
        assert_eq!(std::sync::Arc::strong_count(&captured), 1);
        drop(make(&x));
        assert_eq!(std::sync::Arc::strong_count(&captured), 1);
    }

    #[test]
    fn a_panic_in_a_backward_pass_is_an_error_of_it() {
        let x = draw("x", &[2]);
        let y = with_backward(
            &[&x],
            || x.detach().copy(),
            |_| {
                assert!(is_running());
                std::panic::resume_unwind(Box::new("cannot allocate memory"))
            },
        );
        let error = y.sum(tch::Kind::Float).f_backward().unwrap_err();
        assert!(error.to_string().contains("cannot allocate memory"), "{error}");
        assert!(!is_running());
    }

    /// d⟨p, 3 x⟩ = 3 p, added to what is there.
    #[test]
    fn backward_adds_to_the_leaves() {
        let (x, probe) = (draw("x", &[4]), draw("p", &[4]).detach());
        for times in [3.0, 6.0] {
            backward(&(&x * 3.0), &probe).unwrap();
            assert!((x.grad() - &probe * times).abs().max().double_value(&[]) < 1e-6);
        }
        assert!(backward(&(&x * 3.0), &draw("q", &[5])).unwrap_err().to_string().contains("shape"));
    }

    #[test]
    fn nothing_is_recorded_without_gradients() {
        let x = draw("x", &[2]);
        assert!(is_recorded(&x));
        assert!(!is_recorded(&x.detach()));
        tch::no_grad(|| assert!(!is_recorded(&x)));
    }
}
