//! AdamW, gradient clipping and learning-rate schedules, each equal to the library it is named after.

mod lr_schedule;

pub use lr_schedule::LrSchedule;

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// AdamW's constants besides the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment, in [0, 1).
    pub beta1: f64,
    /// Decay of the second moment, in [0, 1).
    pub beta2: f64,
    /// Added to the denominator, above 0.
    pub epsilon: f64,
    /// Decoupled weight decay, 0 or more.
    pub weight_decay: f64,
}

/// AdamW with decoupled weight decay, step for step equal to `torch.optim.AdamW` (single-tensor form, torch 2.11).
///
/// State is f32 and lives where the parameters live. Source: Loshchilov & Hutter 2019; `torch/optim/adam.py`.
#[derive(Debug)]
pub struct AdamW {
    options: AdamWOptions,
    parameters: Vec<(String, Tensor)>,
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    steps: u64,
}

impl AdamW {
    /// An optimizer over named f32 parameters (the tensors are shared, and updated in place).
    pub fn new(parameters: Vec<(String, Tensor)>, options: AdamWOptions) -> Self {
        let zeros = || parameters.iter().map(|(_, p)| p.detach().zeros_like()).collect();
        Self { first: zeros(), second: zeros(), options, parameters, steps: 0 }
    }

    /// The parameters, in the order gradients are given.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Updates applied so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One update with learning rate `lr`; `gradients` in the order of [`AdamW::parameters`], same shapes.
    ///
    /// Errors: [`Error::Torch`] if a shape differs.
    pub fn step(&mut self, gradients: &[Tensor], lr: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        self.steps += 1;
        let AdamWOptions { beta1, beta2, epsilon, weight_decay } = self.options;
        let correction1 = 1.0 - beta1.powf(self.steps as f64);
        let correction2_root = (1.0 - beta2.powf(self.steps as f64)).sqrt();
        for (i, gradient) in gradients.iter().enumerate() {
            let mut parameter = self.parameters[i].1.shallow_clone();
            let _ = parameter.f_mul_scalar_(1.0 - lr * weight_decay)?;
            let _ = self.first[i].f_lerp_(gradient, 1.0 - beta1)?;
            let square = gradient.f_mul_scalar(1.0 - beta2)?.f_mul(gradient)?;
            let _ = self.second[i].f_mul_scalar_(beta2)?.f_add_(&square)?;
            let denominator = self.second[i].f_sqrt()?.f_div_scalar(correction2_root)?.f_add_scalar(epsilon)?;
            let _ = parameter.f_add_(&self.first[i].f_mul_scalar(-lr / correction1)?.f_div(&denominator)?)?;
        }
        Ok(())
    }

    /// The state as tensors: `first.<name>`, `second.<name>` (shapes of the parameters, on the CPU) and `steps` (i64, one number).
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut state = BTreeMap::from([("steps".to_string(), Tensor::from_slice(&[self.steps as i64]))]);
        for (i, (name, _)) in self.parameters.iter().enumerate() {
            state.insert(format!("first.{name}"), self.first[i].detach().to_device(Device::Cpu));
            state.insert(format!("second.{name}"), self.second[i].detach().to_device(Device::Cpu));
        }
        state
    }

    /// Takes back what [`AdamW::state`] gave, bit for bit. `path` is where it came from, for errors.
    ///
    /// Errors: [`Error::Run`] naming the first tensor that is missing, surplus or misshaped; nothing is changed then.
    pub fn load_state(&mut self, mut state: BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
        let refuse = |reason: String| Error::Run { path: path.into(), reason };
        let steps = state.remove("steps").ok_or_else(|| refuse("expected tensor `steps`, found none".into()))?;
        let steps = if steps.numel() == 1 { steps.f_int64_value(&[0])? } else { -1 };
        let steps = u64::try_from(steps).map_err(|_| refuse("`steps`: expected one number, 0 or more".into()))?;
        let mut take = |prefix: &str| -> Result<Vec<Tensor>> {
            let one = |(name, parameter): &(String, Tensor)| {
                let key = format!("{prefix}.{name}");
                let tensor =
                    state.remove(&key).ok_or_else(|| refuse(format!("expected tensor `{key}`, found none")))?;
                if tensor.size() != parameter.size() || tensor.kind() != Kind::Float {
                    let (expected, found) = (parameter.size(), tensor.size());
                    return Err(refuse(format!(
                        "`{key}`: expected f32 {expected:?}, found {:?} {found:?}",
                        tensor.kind()
                    )));
                }
                Ok(tensor.to_device(parameter.device()).copy())
            };
            self.parameters.iter().map(one).collect()
        };
        let (first, second) = (take("first")?, take("second")?);
        if let Some(surplus) = state.keys().next() {
            return Err(refuse(format!("unexpected tensor `{surplus}`")));
        }
        (self.first, self.second, self.steps) = (first, second, steps);
        Ok(())
    }
}

/// Scales gradients in place so that their global 2-norm is at most `max_norm`; returns the norm before.
///
/// Equal to `torch.nn.utils.clip_grad_norm_`; `max_norm` 0 measures only. A non-finite norm leaves them unscaled.
pub fn clip_grad_norm(gradients: &mut [Tensor], max_norm: f64) -> Result<f64> {
    let _guard = tch::no_grad_guard();
    if gradients.is_empty() {
        return Ok(0.0);
    }
    let norms = gradients.iter().map(Tensor::f_norm).collect::<Result<Vec<_>, _>>()?;
    let total = Tensor::f_stack(&norms, 0)?.f_norm()?;
    let norm = total.f_double_value(&[])?;
    if max_norm > 0.0 && norm.is_finite() {
        let scale = total.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(max_norm)?.f_clamp_max(1.0)?;
        for gradient in gradients {
            let _ = gradient.f_mul_(&scale)?;
        }
    }
    Ok(norm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use seedpo_tensor::WeightFile;

    const OPTIONS: AdamWOptions = AdamWOptions { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 1e-2 };

    fn fixture() -> WeightFile {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/optimizer.safetensors");
        WeightFile::open(&path).unwrap()
    }

    fn start(file: &WeightFile) -> AdamW {
        let names = ["a", "b"];
        let take = |n: &&str| (n.to_string(), file.tensor(&format!("initial.{n}")).unwrap());
        AdamW::new(names.iter().map(take).collect(), OPTIONS)
    }

    /// Gradient of step s, clipped as the fixture's loop clips them; returns the norm before.
    fn gradients(file: &WeightFile, step: i64) -> (Vec<Tensor>, f64) {
        let mut g: Vec<_> =
            ["a", "b"].iter().map(|n| file.tensor(&format!("gradients.{n}")).unwrap().get(step).copy()).collect();
        let norm = clip_grad_norm(&mut g, 1.0).unwrap();
        (g, norm)
    }

    /// 50 steps with clipping and a cosine schedule. f32 rounding of fused against unfused multiply-adds is all that
    /// may differ: 1e-6 relative to the parameters' size of about 1.
    #[test]
    fn fifty_steps_equal_torch() {
        let file = fixture();
        let (expected, norms, lrs) = (
            ["a", "b"].map(|n| file.tensor(&format!("parameters.{n}")).unwrap()),
            file.tensor("norms").unwrap(),
            file.tensor("lrs").unwrap(),
        );
        let schedule = LrSchedule::from_settings("cosine", 5, 50).unwrap();
        let mut optimizer = start(&file);
        for step in 0..50 {
            let (g, norm) = gradients(&file, step);
            let lr = 1e-2 * schedule.factor(step as u64);
            assert!((norm / norms.double_value(&[step]) - 1.0).abs() < 1e-6);
            assert!((lr - lrs.double_value(&[step])).abs() < 1e-12);
            optimizer.step(&g, lr).unwrap();
            for (i, reference) in expected.iter().enumerate() {
                let difference = (&optimizer.parameters[i].1 - reference.get(step)).abs().max().double_value(&[]);
                assert!(difference < 1e-6, "step {step} parameter {i}: {difference}");
            }
        }
    }

    #[test]
    fn state_continues_bit_for_bit() {
        let file = fixture();
        let run = |optimizer: &mut AdamW, steps: std::ops::Range<i64>| {
            steps.for_each(|s| optimizer.step(&gradients(&file, s).0, 1e-2).unwrap())
        };
        let mut whole = start(&file);
        run(&mut whole, 0..10);
        let saved = whole.state().into_iter().map(|(k, v)| (k, v.copy())).collect();
        let values: Vec<_> = whole.parameters.iter().map(|(n, p)| (n.clone(), p.copy())).collect();
        run(&mut whole, 10..20);
        let mut resumed = AdamW::new(values, OPTIONS);
        resumed.load_state(saved, Path::new("x")).unwrap();
        run(&mut resumed, 10..20);
        for (one, other) in whole.parameters.iter().zip(&resumed.parameters) {
            assert!(one.1.equal(&other.1));
        }
    }

    #[test]
    fn state_of_another_model_is_refused_by_tensor_name() {
        let file = fixture();
        let mut optimizer = start(&file);
        let refused = |optimizer: &mut AdamW, change: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
            let mut state = optimizer.state();
            change(&mut state);
            optimizer.load_state(state, Path::new("optimizer.safetensors")).unwrap_err().to_string()
        };
        let message = refused(&mut optimizer, &|s| drop(s.remove("first.a")));
        assert!(message.contains("first.a") && message.contains("optimizer.safetensors"));
        let message = refused(&mut optimizer, &|s| {
            drop(s.insert("second.b".into(), Tensor::zeros([2], (Kind::Float, Device::Cpu))))
        });
        assert!(message.contains("second.b") && message.contains("[2]"), "{message}");
        let message = refused(&mut optimizer, &|s| {
            drop(s.insert("other".into(), Tensor::zeros([2], (Kind::Float, Device::Cpu))))
        });
        assert!(message.contains("`other`"));
    }
}
