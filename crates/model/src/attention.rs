//! Softmax attention, by the kernel that is fastest where it runs.

use std::cell::Cell;

use seedpo_tensor::gradient::{is_recorded, with_backward};
use tch::{Device, Kind, Tensor};

thread_local! {
    static PLAIN_ATTENTION: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with attention in its plain form (two matrix products) instead of the fused kernel, on this thread.
///
/// For training whole networks in bf16 on CPU: there the fused kernel's backward pass is 5 to 7 times slower (libtorch
/// 2.11, short sequences). Results differ by rounding.
pub fn with_plain_attention<T>(body: impl FnOnce() -> T) -> T {
    let before = PLAIN_ATTENTION.replace(true);
    let result = body();
    PLAIN_ATTENTION.set(before);
    result
}

/// Softmax attention of `q` `[B, N, C]` over `k`, `v` `[B, M, C]` with `heads` heads.
///
/// Through libtorch's fused kernel, but on CPU in bf16 as matrix products, two to three times faster there (forward and
/// backward): scores and probabilities are then rounded to bf16, as q and k are anyway.
///
/// The two 16-bit forms keep q, k and v for their backward pass and compute the probabilities anew: 1.3 GiB a latent less in
/// Stable Diffusion at 512 × 512, for one product more in six.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: i64, causal: bool) -> Tensor {
    let products = q.kind() == Kind::BFloat16 && q.device() == Device::Cpu && !causal;
    if !products {
        let [q, k, v] = [q, k, v].map(|x| split(x, heads));
        return joined(match PLAIN_ATTENTION.get() {
            true => plain_attention(&[q, k, v], causal),
            false => Tensor::scaled_dot_product_attention::<&Tensor>(&q, &k, &v, None, 0.0, causal, None, false),
        });
    }
    let inputs = [q, k, v];
    if !inputs.iter().any(|x| is_recorded(x)) {
        return by_products(&inputs.map(|x| split(x, heads)));
    }
    let kept = inputs.map(|x| split(&x.detach(), heads));
    let at_once = in_one_product(&kept[0], &kept[1]);
    let output = tch::no_grad(|| by_products(&kept));
    let needed = inputs.map(|x| x.requires_grad());
    let backward = move |gradient: &Tensor| {
        let found = products_backward(&kept, &split(&gradient.contiguous(), heads), at_once).map(joined);
        found.into_iter().zip(needed).map(|(found, needed)| needed.then_some(found)).collect()
    };
    with_backward(&inputs, || output, backward)
}

/// `[B, N, C]` as `[B, heads, N, C / heads]`.
fn split(x: &Tensor, heads: i64) -> Tensor {
    let (batch, length, width) = (x.size()[0], x.size()[1], x.size()[2]);
    x.view([batch, length, heads, width / heads]).transpose(1, 2)
}

/// `[B, heads, N, d]` as `[B, N, heads · d]`.
fn joined(x: Tensor) -> Tensor {
    let (batch, heads, length, width) = x.size4().unwrap_or_default();
    x.transpose(1, 2).reshape([batch, length, heads * width])
}

/// Up to this many scores a head, one batched product for all heads is as fast as one for each.
const ONE_PRODUCT: i64 = 256 * 256;
/// Scores computed at once, about what fits in the cache (4 MiB in bf16).
const SCORES_AT_ONCE: i64 = 1 << 21;

fn scale(q: &Tensor) -> f64 {
    1.0 / (q.size().last().copied().unwrap_or(1) as f64).sqrt()
}

/// Whether one batched product for all heads is made.
fn in_one_product(q: &Tensor, k: &Tensor) -> bool {
    PLAIN_ATTENTION.get() || q.size()[2] * k.size()[2] <= ONE_PRODUCT
}

fn by_products(parts: &[Tensor; 3]) -> Tensor {
    joined(if in_one_product(&parts[0], &parts[1]) { plain_attention(parts, false) } else { attention_by_heads(parts) })
}

fn plain_attention([q, k, v]: &[Tensor; 3], causal: bool) -> Tensor {
    let scores = (q * scale(q)).matmul(&k.transpose(-2, -1));
    let scores = if causal { &scores + later_keys(&scores) } else { scores };
    scores.softmax(-1, q.kind()).matmul(v)
}

/// Each head of each picture, `[N, d]`.
fn per_head(x: &Tensor) -> Vec<Tensor> {
    x.unbind(0).iter().flat_map(|x| x.unbind(0)).collect()
}

/// Rows of the scores computed at once, against `keys`.
fn rows_at_once(keys: i64) -> i64 {
    (SCORES_AT_ONCE / keys).max(1)
}

/// Head by head and, in each, some rows of the scores at a time, so that they stay in the cache.
fn attention_by_heads([q, k, v]: &[Tensor; 3]) -> Tensor {
    let q = q * scale(q);
    let one = |((q, k), v): ((&Tensor, &Tensor), &Tensor)| {
        let keys = k.transpose(0, 1);
        let part = |q: &Tensor| q.mm(&keys).softmax(-1, q.kind()).mm(v);
        let parts: Vec<Tensor> = q.split(rows_at_once(k.size()[0]), 0).iter().map(part).collect();
        Tensor::cat(&parts, 0)
    };
    let (queries, keys, values) = (per_head(&q), per_head(k), per_head(v));
    let heads: Vec<Tensor> = queries.iter().zip(&keys).zip(&values).map(one).collect();
    Tensor::stack(&heads, 0).view(q.size().as_slice())
}

/// The gradients of q, k and v from that of the result, all `[B, heads, N, d]`.
fn products_backward(parts: &[Tensor; 3], gradient: &Tensor, at_once: bool) -> [Tensor; 3] {
    let [q, k, v] = parts;
    let factor = scale(q);
    let scaled = q * factor;
    if at_once {
        let [q, k, v] = piece_backward(&scaled, k, v, gradient);
        return [q * factor, k, v];
    }
    let results = [q, k, v].map(Tensor::empty_like);
    let [to_q, to_k, to_v] = results.each_ref().map(per_head);
    let [queries, keys, values, gradients] = [&scaled, k, v, gradient].map(per_head);
    for head in 0..queries.len() {
        let rows = rows_at_once(keys[head].size()[0]);
        let wide = |x: &Tensor| x.zeros_like().to_kind(Kind::Float);
        let (mut sum_k, mut sum_v) = (wide(&keys[head]), wide(&values[head]));
        let mut parts = Vec::new();
        for (q, gradient) in queries[head].split(rows, 0).iter().zip(gradients[head].split(rows, 0)) {
            let [q, k, v] = piece_backward(q, &keys[head], &values[head], &gradient);
            parts.push(q);
            sum_k += k;
            sum_v += v;
        }
        to_q[head].shallow_clone().copy_(&(Tensor::cat(&parts, 0) * factor));
        to_k[head].shallow_clone().copy_(&sum_k);
        to_v[head].shallow_clone().copy_(&sum_v);
    }
    results
}

/// The gradients of scaled queries, keys and values of `softmax(q kᵀ) v`, over the last two axes.
fn piece_backward(q: &Tensor, k: &Tensor, v: &Tensor, gradient: &Tensor) -> [Tensor; 3] {
    let probabilities = q.matmul(&k.transpose(-2, -1)).softmax(-1, q.kind());
    let of_v = probabilities.transpose(-2, -1).matmul(gradient);
    let of_probabilities = gradient.matmul(&v.transpose(-2, -1));
    let of_scores = Tensor::internal_softmax_backward_data(&of_probabilities, &probabilities, -1, q.kind());
    [of_scores.matmul(k), of_scores.transpose(-2, -1).matmul(q), of_v]
}

/// What a causal mask adds to `scores` `[.., N, M]`: minus infinity where a key comes after its query, else 0.
fn later_keys(scores: &Tensor) -> Tensor {
    let shape = scores.size();
    Tensor::full(&shape[shape.len() - 2..], f64::NEG_INFINITY, (scores.kind(), scores.device())).triu(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_attention_equals_the_fused_kernel() {
        let draw = |purpose, length| seedpo_tensor::NoiseKey::new(1, purpose).normal(&[2, length, 24]);
        let (q, k, v) = (draw("q", 7), draw("k", 7), draw("v", 7));
        for causal in [false, true] {
            let fused = attention(&q, &k, &v, 3, causal);
            let plain = with_plain_attention(|| attention(&q, &k, &v, 3, causal));
            // f32 sums of at most 24 terms of size 1.
            assert!((fused - plain).abs().max().double_value(&[]) < 1e-5, "causal {causal}");
        }
    }

    /// Value and gradients of the 16-bit forms against f32 on the same rounded inputs: few tokens (one product), many (by
    /// heads, in two pieces), and many queries over few keys.
    #[test]
    fn products_in_16_bits_have_the_gradients_of_f32() {
        for (queries, keys) in [(7, 7), (1500, 2048), (4096, 77)] {
            let draw = |purpose, length| {
                seedpo_tensor::NoiseKey::new(1, purpose).normal(&[2, length, 16]).to_kind(Kind::BFloat16)
            };
            let run = |kind| {
                let leaf = |x: Tensor| x.to_kind(kind).set_requires_grad(true);
                let [q, k, v] = [draw("q", queries), draw("k", keys), draw("v", keys)].map(leaf);
                let y = attention(&q, &k, &v, 2, false);
                let loss = (&y * draw("probe", queries).to_kind(kind)).sum(Kind::Float);
                let mut all = Tensor::run_backward(&[loss], &[&q, &k, &v], false, false);
                all.push(y.detach());
                all
            };
            for (ours, exact) in run(Kind::BFloat16).iter().zip(run(Kind::Float)) {
                let apart = (ours.to_kind(Kind::Float) - &exact).norm().double_value(&[]);
                // bf16 keeps 8 bits: 0.4 % a rounding, of which a few come together.
                let relative = apart / exact.norm().double_value(&[]);
                assert!(relative < 0.015, "{queries} queries, {keys} keys: {relative}");
            }
        }
    }

    #[test]
    fn without_gradients_for_keys_and_values_the_query_has_its_own() {
        let draw = |purpose| seedpo_tensor::NoiseKey::new(1, purpose).normal(&[1, 300, 8]).to_kind(Kind::BFloat16);
        let [q, k, v] = ["q", "k", "v"].map(draw);
        let run = |trained: bool| {
            let (q, k) = (q.detach().set_requires_grad(true), k.detach().set_requires_grad(trained));
            let y = attention(&q, &k, &v, 1, false).sum(Kind::Float);
            Tensor::run_backward(&[y], &[&q], false, false).remove(0)
        };
        assert_eq!(run(true), run(false));
    }
}
