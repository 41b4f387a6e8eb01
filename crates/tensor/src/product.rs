//! Matrix products of linear layers, by the kernel that is fastest where they run.

use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

/// Rows from which oneDNN's kernel pays for the reordering of the weight that it begins with.
const ROWS: i64 = 64;
/// Multiplications from which it pays for its preparations; below, MKL is done before.
const WORK: i64 = 1 << 23;
/// Outputs up to which it is as fast at once as in pieces; of 10240 it is slower than MKL where rows are few.
const OUTPUTS: i64 = 5120;

/// `x Wᵀ + b` over the last axis of `x`; `weight` `[out, in]`.
///
/// libtorch multiplies f32 matrices with MKL, which on other processors than Intel's leaves AVX-512 unused. There the
/// product goes to oneDNN as a 1×1 convolution over rows: the same sums, differently rounded, about twice as fast, but for
/// few rows or small matrices. Panics, as tch does, where the shapes do not go together. The result is fresh memory, which may be
/// changed in place.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let rows = x.numel() as i64 / x.size().last().map_or(1, |width| (*width).max(1));
    let here = x.kind() == Kind::Float && x.device() == Device::Cpu && weight.kind() == Kind::Float;
    if here && pays(rows, weight.numel() as i64) && x.is_contiguous() && mkl_is_slow() {
        in_pieces(x, weight, bias)
    } else {
        x.linear(weight, bias)
    }
}

/// Whether oneDNN's kernel is the faster one (measured by python/kernel_bench.py).
fn pays(rows: i64, weights: i64) -> bool {
    rows >= ROWS && rows.saturating_mul(weights) >= WORK
}

/// Some outputs at a time, where there are many.
fn in_pieces(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let pieces = (weight.size()[0] - 1) / OUTPUTS + 1;
    if pieces <= 1 {
        return by_convolution(x, weight, bias);
    }
    let biases = bias.map(|bias| bias.chunk(pieces, 0));
    let piece = |(at, weight)| by_convolution(x, weight, biases.as_ref().map(|biases| &biases[at]));
    let pieces: Vec<Tensor> = weight.chunk(pieces, 0).iter().enumerate().map(piece).collect();
    Tensor::cat(&pieces, -1)
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
    reshaped(y.permute([0, 2, 3, 1]), &shape)
}

/// `y`, which nobody else holds, in another shape: not as a view, which autograd copies before it is changed in place.
pub fn reshaped(y: Tensor, shape: &[i64]) -> Tensor {
    // Where the numbers do not lie in their order, reshaping copies them.
    if y.is_contiguous() { y.internal_unsafe_view(shape) } else { y.reshape(shape) }
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

    /// Values and gradients are those of libtorch's own linear layer, up to the rounding of sums of 40 terms; also after the
    /// result was changed in place.
    #[test]
    fn convolutions_over_rows_are_a_linear_layer() {
        let draw = |name, shape: &[i64]| crate::NoiseKey::new(1, name).normal(shape);
        type Product = fn(&Tensor, &Tensor, Option<&Tensor>) -> Tensor;
        let cases: [(Product, i64); 2] = [(by_convolution, 24), (in_pieces, 2 * OUTPUTS + 1)];
        for (ours, outputs) in cases {
            for bias in [None, Some(draw("bias", &[outputs]))] {
                let run = |product: Product| {
                    let x = draw("x", &[3, 5, 40]).set_requires_grad(true);
                    let weight = draw("weight", &[outputs, 40]).set_requires_grad(true);
                    let mut y = product(&x, &weight, bias.as_ref());
                    let y = y.g_add_(&draw("more", &[outputs]));
                    let loss = (&y * draw("probe", &[3, 5, outputs])).sum(Kind::Float);
                    let mut all = Tensor::run_backward(&[loss], &[&x, &weight], false, false);
                    all.push(y.detach());
                    all
                };
                for (ours, theirs) in run(ours).iter().zip(run(|x, w, b| x.linear(w, b))) {
                    assert_eq!(ours.size(), theirs.size());
                    let apart = (ours - &theirs).abs().max().double_value(&[]);
                    assert!(apart < 1e-5 * theirs.abs().max().double_value(&[]), "{apart}");
                }
            }
        }
    }

    #[test]
    fn small_products_stay_with_mkl() {
        // Rows, inputs, outputs: measured on two cores of an AMD EPYC.
        for (rows, inputs, outputs, onednn) in [
            (256, 64, 64, false),
            (1024, 64, 64, false),
            (154, 64, 64, false),
            (32, 1280, 1280, false),
            (2048, 64, 64, true),
            (4096, 64, 256, true),
            (64, 1280, 10240, true),
            (154, 768, 320, true),
            (8192, 320, 320, true),
        ] {
            assert_eq!(pays(rows, inputs * outputs), onednn, "{rows}, {inputs}, {outputs}");
        }
    }
}
