//! Convolutions, by the kernel that is fastest where they run, and keeping no more than their backward pass reads.

use tch::{Device, Kind, Tensor};

use crate::gradient::{convolution_input, is_recorded, with_backward};
use crate::product::linear;

/// Weights per output position from which a product of patches is faster than libtorch's convolution, in 16 bits and in 32:
/// for small pictures of many channels oneDNN's kernels spend most of their time on arranging the weight (two to four times
/// slower for 2560 channels; `python/kernel_bench.py`).
const WEIGHTS_PER_POSITION: [i64; 2] = [1 << 16, 1 << 18];

/// `weight` `[out, in, k, k]` over `x` `[B, in, h, w]`, plus `bias` `[out]`: as [`Tensor::conv2d`] with square stride and
/// padding, but for rounding. Panics, as that does, where the shapes do not go together.
///
/// Where the weight is frozen, libtorch's own way keeps no input for the backward pass.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: i64, padding: i64) -> Tensor {
    let Some(size) = supported(x, weight) else {
        return x.conv2d(weight, Some(bias), [stride; 2], [padding; 2], [1, 1], 1);
    };
    let kernel = weight.size()[3];
    let [height, width] = [size[2], size[3]].map(|side| (side + 2 * padding - kernel) / stride + 1);
    let bytes_16 = weight.kind() != Kind::Float;
    let enough = WEIGHTS_PER_POSITION[usize::from(!bytes_16)];
    if size[0] * height * width * enough <= weight.numel() as i64 {
        return of_patches(x, weight, bias, [stride, padding], [height, width]);
    }
    let forward = |x: &Tensor| x.conv2d(weight, Some(bias), [stride; 2], [padding; 2], [1, 1], 1);
    if !is_recorded(x) || weight.requires_grad() || bias.requires_grad() {
        return forward(x);
    }
    let (input, kept) = (x.detach(), weight.shallow_clone());
    let backward = move |gradient: &Tensor| vec![Some(convolution_input(gradient, &kept, &size, stride, padding))];
    with_backward(&[x], || forward(&input), backward)
}

/// The input's shape, where it and the weight are of a kind that these paths are for, on the CPU.
fn supported(x: &Tensor, weight: &Tensor) -> Option<[i64; 4]> {
    let kinds = [Kind::Float, Kind::BFloat16];
    let here = x.device() == Device::Cpu && x.kind() == weight.kind() && kinds.contains(&x.kind());
    let size = <[i64; 4]>::try_from(x.size()).ok()?;
    (here && size[1] == weight.size()[1]).then_some(size)
}

/// Every position's patch times the weight.
fn of_patches(x: &Tensor, weight: &Tensor, bias: &Tensor, [stride, padding]: [i64; 2], size: [i64; 2]) -> Tensor {
    let (batch, outputs, kernel) = (x.size()[0], weight.size()[0], weight.size()[3]);
    let patches = match kernel {
        1 if stride == 1 && padding == 0 => x.flatten(2, -1),
        _ => x.im2col([kernel; 2], [1, 1], [padding; 2], [stride; 2]),
    };
    let rows = patches.transpose(1, 2).reshape([-1, weight.numel() as i64 / outputs]);
    let y = linear(&rows, &weight.view([outputs, -1]), Some(bias));
    y.view([batch, size[0] * size[1], outputs]).transpose(1, 2).contiguous().view([batch, outputs, size[0], size[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    type Convolution = fn(&Tensor, &Tensor, &Tensor, i64, i64) -> Tensor;

    fn libtorch(x: &Tensor, weight: &Tensor, bias: &Tensor, stride: i64, padding: i64) -> Tensor {
        x.conv2d(weight, Some(bias), [stride; 2], [padding; 2], [1, 1], 1)
    }

    /// The value and the gradients of input, weight and bias (those that are trained).
    fn run(of: Convolution, [channels, outputs, kernel, stride, padding]: [i64; 5], trained: bool) -> Vec<Tensor> {
        let draw = |name, shape: &[i64]| crate::NoiseKey::new(1, name).normal(shape);
        let x = draw("x", &[2, channels, 6, 5]).set_requires_grad(true);
        let fan_in = (channels * kernel * kernel) as f64;
        let weight = (draw("w", &[outputs, channels, kernel, kernel]) / fan_in.sqrt()).set_requires_grad(trained);
        let bias = draw("b", &[outputs]).set_requires_grad(trained);
        let y = of(&x, &weight, &bias, stride, padding);
        let loss = (&y * draw("probe", &y.size())).sum(Kind::Float);
        let leaves = if trained { vec![&x, &weight, &bias] } else { vec![&x] };
        let mut all = Tensor::run_backward(&[loss], &leaves, false, false);
        all.push(y.detach());
        all
    }

    /// Both ways are libtorch's convolution, with its gradients, up to the rounding of sums of 5760 terms.
    #[test]
    fn values_and_gradients_are_those_of_libtorch() {
        let patches: Convolution = |x, weight, bias, stride, padding| {
            let size = [2, 3].map(|axis| (x.size()[axis] + 2 * padding - weight.size()[3]) / stride + 1);
            of_patches(x, weight, bias, [stride, padding], size)
        };
        for shape in [[8, 12, 3, 1, 1], [8, 12, 3, 2, 1], [8, 12, 3, 2, 0], [8, 12, 1, 1, 0], [640, 16, 3, 1, 1]] {
            for trained in [false, true] {
                let theirs = run(libtorch, shape, trained);
                for ours in [run(conv2d, shape, trained), run(patches, shape, trained)] {
                    assert_eq!(ours.len(), theirs.len());
                    for (ours, theirs) in ours.iter().zip(&theirs) {
                        assert_eq!(ours.size(), theirs.size());
                        let apart = (ours - theirs).abs().max().double_value(&[]);
                        let size = theirs.abs().max().double_value(&[]);
                        assert!(apart < 1e-5 * size, "{shape:?}, trained {trained}: {apart} of {size}");
                    }
                }
            }
        }
    }

    /// The frozen convolution's input may be overwritten: nothing of it is kept.
    #[test]
    fn a_frozen_convolution_keeps_no_input() {
        let draw = |name, shape: &[i64]| crate::NoiseKey::new(1, name).normal(shape);
        let (weight, bias) = (draw("w", &[4, 4, 3, 3]), draw("b", &[4]));
        let leaf = draw("x", &[1, 4, 6, 6]).set_requires_grad(true);
        let gradient = |overwrite: bool| {
            let mut x = &leaf * 2.0;
            let y = conv2d(&x, &weight, &bias, 1, 1).sum(Kind::Float);
            if overwrite {
                let _ = x.zero_();
            }
            Tensor::run_backward(&[y], &[&leaf], false, false).remove(0)
        };
        assert_eq!(gradient(true), gradient(false));
    }
}
