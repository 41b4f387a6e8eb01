//! Data-parallel training on one machine: one flat f32 vector of weights, and replicas of the networks that each
//! compute the gradient of a part of the batch on a thread of their own.
//!
//! One thread per replica needs one barrier per step instead of one per operation, which is what makes small networks
//! fast on few cores, busy ones above all. Replicas may hold the weights in bf16; the flat vector stays f32.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Where one tensor lies in the flat vector.
#[derive(Debug, Clone)]
struct Slot {
    name: String,
    shape: Vec<i64>,
    offset: i64,
    len: i64,
}

/// Names and shapes of all weights, in order.
#[derive(Debug, Clone)]
pub struct Layout {
    slots: Vec<Slot>,
    len: i64,
}

impl Layout {
    /// The layout of these tensors, and their values as one f32 vector `[N]`.
    pub fn flatten(tensors: &BTreeMap<String, Tensor>) -> (Self, Tensor) {
        let (mut slots, mut len) = (Vec::new(), 0);
        for (name, tensor) in tensors {
            let count = tensor.numel() as i64;
            slots.push(Slot { name: name.clone(), shape: tensor.size(), offset: len, len: count });
            len += count;
        }
        let parts: Vec<Tensor> = tensors.values().map(|t| t.detach().to_kind(Kind::Float).reshape([-1])).collect();
        (Self { slots, len }, Tensor::cat(&parts, 0))
    }

    /// How many numbers there are.
    pub fn len(&self) -> i64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The tensors as views into `flat`, by name.
    pub fn views(&self, flat: &Tensor) -> Vec<(String, Tensor)> {
        let view = |s: &Slot| (s.name.clone(), flat.narrow(0, s.offset, s.len).view(s.shape.as_slice()).detach());
        self.slots.iter().map(view).collect()
    }

    /// The views whose names start with `prefix`, which is taken off.
    pub fn part(&self, flat: &Tensor, prefix: &str) -> BTreeMap<String, Tensor> {
        let strip = |(name, view): (String, Tensor)| name.strip_prefix(prefix).map(|n| (n.to_owned(), view));
        self.views(flat).into_iter().filter_map(strip).collect()
    }
}

/// A copy of the networks with weights of its own.
struct Replica<M> {
    flat: Tensor,
    leaves: Vec<Tensor>,
    networks: M,
}

impl<M> Replica<M> {
    /// The flat gradient (f32) and the numbers that `loss` reports.
    fn gradient(&self, loss: Tensor) -> Result<Tensor> {
        let gradients = Tensor::f_run_backward(&[loss], &self.leaves, false, false)?;
        let flat = |(gradient, leaf): (&Tensor, &Tensor)| match gradient.defined() {
            true => gradient.to_kind(Kind::Float).reshape([-1]),
            false => Tensor::zeros([leaf.numel() as i64], (Kind::Float, Device::Cpu)),
        };
        let parts: Vec<Tensor> = gradients.iter().zip(&self.leaves).map(flat).collect();
        Ok(Tensor::f_cat(&parts, 0)?)
    }
}

/// All replicas.
pub struct Replicas<M> {
    stage: &'static str,
    replicas: Vec<Replica<M>>,
}

impl<M: Send> Replicas<M> {
    /// `workers` replicas with weights of this kind; `build` makes the networks from the named tensors.
    pub fn new(
        stage: &'static str,
        layout: &Layout,
        workers: usize,
        kind: Kind,
        build: impl Fn(&Layout, BTreeMap<String, Tensor>) -> Result<M>,
    ) -> Result<Self> {
        let one = |_| {
            let flat = Tensor::f_zeros([layout.len()], (kind, Device::Cpu))?;
            let named: Vec<(String, Tensor)> =
                layout.views(&flat).into_iter().map(|(n, t)| (n, t.set_requires_grad(true))).collect();
            let leaves = named.iter().map(|(_, t)| t.shallow_clone()).collect();
            Ok(Replica { flat, leaves, networks: build(layout, named.into_iter().collect())? })
        };
        Ok(Self { stage, replicas: (0..workers.max(1)).map(one).collect::<Result<_>>()? })
    }

    /// How many there are.
    pub fn workers(&self) -> usize {
        self.replicas.len()
    }

    /// The mean gradient `[N]` f32 at `weights` over the replicas' parts, and the mean of the numbers `loss` reports.
    ///
    /// `loss` gets a replica's networks and its part: (replica index, number of replicas). Parts must be equally large.
    pub fn gradient<F>(&mut self, weights: &Tensor, loss: F) -> Result<(Tensor, Vec<f64>)>
    where
        F: Fn(&M, usize, usize) -> Result<(Tensor, Vec<f64>)> + Sync,
    {
        let (count, stage) = (self.replicas.len(), self.stage);
        let work = |index: usize, replica: &mut Replica<M>, weights: Tensor| {
            tch::no_grad(|| replica.flat.f_copy_(&weights))?;
            let (value, report) = loss(&replica.networks, index, count)?;
            Ok((replica.gradient(value)?, report))
        };
        let parts: Vec<Result<(Tensor, Vec<f64>)>> = if count == 1 {
            vec![work(0, &mut self.replicas[0], weights.shallow_clone())]
        } else {
            std::thread::scope(|scope| {
                let work = &work;
                let start = |(index, replica)| {
                    let weights = weights.shallow_clone();
                    scope.spawn(move || {
                        tch::set_num_threads(1);
                        work(index, replica, weights)
                    })
                };
                let running: Vec<_> = self.replicas.iter_mut().enumerate().map(start).collect();
                running.into_iter().map(|t| t.join().unwrap_or(Err(Error::Worker(stage)))).collect()
            })
        };
        average(parts)
    }
}

fn average(parts: Vec<Result<(Tensor, Vec<f64>)>>) -> Result<(Tensor, Vec<f64>)> {
    let scale = 1.0 / parts.len() as f64;
    let mut sum: Option<(Tensor, Vec<f64>)> = None;
    for part in parts {
        let (gradient, report) = part?;
        sum = Some(match sum {
            None => (gradient, report),
            Some((mut total, reports)) => {
                let _ = total.f_add_(&gradient)?;
                (total, reports.iter().zip(&report).map(|(a, b)| a + b).collect())
            }
        });
    }
    // Invariant: there is always at least one replica, hence one part.
    let (gradient, report) = sum.unwrap_or_else(|| (Tensor::zeros([0], (Kind::Float, Device::Cpu)), Vec::new()));
    let mut gradient = gradient;
    let _ = tch::no_grad(|| gradient.f_mul_scalar_(scale))?;
    Ok((gradient, report.into_iter().map(|r| r * scale).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Line(BTreeMap<String, Tensor>);

    fn gradient(workers: usize, kind: Kind) -> (Vec<f32>, f64) {
        let start =
            [("a".to_owned(), Tensor::from_slice(&[1.0f32, 2.0])), ("b".to_owned(), Tensor::from_slice(&[3.0f32]))];
        let (layout, flat) = Layout::flatten(&start.into_iter().collect());
        let mut replicas = Replicas::new("test", &layout, workers, kind, |_, map| Ok(Line(map))).unwrap();
        let loss = |line: &Line, index: usize, count: usize| {
            let rows: Vec<f32> = (0..4).skip(index * 4 / count).take(4 / count).map(|i| i as f32).collect();
            let x = Tensor::from_slice(&rows).to_kind(kind);
            let y = &x * line.0["a"].sum(kind) + &line.0["b"] * &line.0["b"];
            let loss = y.mean(kind);
            let value = loss.double_value(&[]);
            Ok((loss, vec![value]))
        };
        let (gradient, report) = replicas.gradient(&flat, loss).unwrap();
        (Vec::try_from(gradient).unwrap(), report[0])
    }

    #[test]
    fn the_split_does_not_change_the_gradient() {
        for workers in [1, 2, 4] {
            for kind in [Kind::Float, Kind::BFloat16] {
                // d/da of mean(3 x) is mean(x) = 1.5, d/db of b^2 is 6; the loss is 3 * 1.5 + 9.
                assert_eq!(gradient(workers, kind), (vec![1.5, 1.5, 6.0], 13.5), "{workers} {kind:?}");
            }
        }
    }
}
