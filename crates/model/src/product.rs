//! Matrix products of linear layers, by the kernel that is fastest where they run.

use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

/// Rows from which oneDNN's kernel pays for the reordering of the weight that it begins with.
const ROWS: i64 = 64;

/// `x Wᵀ + b` over the last axis of `x`; `weight` `[out, in]`.
///
/// libtorch multiplies f32 matrices with MKL, which on other processors than Intel's leaves AVX-512 unused. There the
/// product goes to oneDNN as a 1×1 convolution over rows: the same sums, differently rounded, about twice as fast.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let rows = x.numel() as i64 / x.size().last().map_or(1, |width| (*width).max(1));
    let here = x.kind() == Kind::Float && x.device() == Device::Cpu && weight.kind() == Kind::Float;
    if here && rows >= ROWS && x.is_contiguous() && mkl_is_slow() {
        by_convolution(x, weight, bias)
    } else {
        x.linear(weight, bias)
    }
}

/// Rows are the height of one channels-last picture of width 1, so that nothing is copied on either side.
fn by_convolution(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let mut shape = x.size();
    let inputs = shape.pop().unwrap_or(1);
    let outputs = weight.size()[0];
    let picture = x.view([1, -1, 1, inputs]).permute([0, 3, 1, 2]);
    let kernel = weight.view([outputs, inputs, 1, 1]);
    let y = picture.mkldnn_convolution(&kernel, bias, [0, 0], [1, 1], [1, 1], 1);
    shape.push(outputs);
    y.permute([0, 2, 3, 1]).reshape(shape.as_slice())
}

/// Whether this is a processor with AVX-512 on which MKL does not use it.
fn mkl_is_slow() -> bool {
    static SLOW: OnceLock<bool> = OnceLock::new();
    *SLOW.get_or_init(|| {
        // Linux alone says it; elsewhere libtorch's own choice stays.
        let known = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let vendor = known.lines().find(|line| line.starts_with("vendor_id"));
        has_avx512() && vendor.is_some_and(|line| !line.contains("GenuineIntel"))
    })
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Values and gradients are those of libtorch's own linear layer, up to the rounding of sums of 40 terms.
    #[test]
    fn a_convolution_over_rows_is_a_linear_layer() {
        let draw = |name, shape: &[i64]| seedpo_tensor::NoiseKey::new(1, name).normal(shape);
        for bias in [None, Some(draw("bias", &[24]))] {
            let run = |product: fn(&Tensor, &Tensor, Option<&Tensor>) -> Tensor| {
                let x = draw("x", &[3, 50, 40]).set_requires_grad(true);
                let weight = draw("weight", &[24, 40]).set_requires_grad(true);
                let y = product(&x, &weight, bias.as_ref());
                let loss = (&y * draw("probe", &[3, 50, 24])).sum(Kind::Float);
                let mut all = Tensor::run_backward(&[loss], &[&x, &weight], false, false);
                all.push(y.detach());
                all
            };
            let ours = run(by_convolution);
            for (ours, theirs) in ours.iter().zip(run(|x, w, b| x.linear(w, b))) {
                assert_eq!(ours.size(), theirs.size());
                let apart = (ours - &theirs).abs().max().double_value(&[]);
                assert!(apart < 1e-5 * theirs.abs().max().double_value(&[]), "{apart}");
            }
        }
    }
}
