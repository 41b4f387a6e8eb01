//! Steps against diffusers' DDIMScheduler and the closed form in float64. Fixture: python/fixtures/ddim.py.

use std::collections::BTreeMap;
use std::path::Path;

use seedpo_model::SchedulerConfig;
use seedpo_model::config::TimestepSpacing;
use seedpo_model::schedule::NoiseSchedule;
use seedpo_rollout::{Ddim, Error};
use seedpo_tensor::WeightFile;
use tch::{Kind, Tensor};

use crate::toy::{alphas, largest, same, sampler};

/// Name, steps, η, steps_offset; the same as in the script.
const CASES: [(&str, usize, f64, i64, &str); 5] = [
    ("published", 20, 1.0, 1, "scaled_linear"),
    ("half", 50, 0.5, 1, "scaled_linear"),
    ("linear", 10, 1.0, 1, "linear"),
    ("deterministic", 20, 0.0, 1, "scaled_linear"),
    ("odd", 7, 1.0, 0, "scaled_linear"),
];

fn fixture() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ddim.safetensors");
    WeightFile::open(&path).unwrap().tensors().unwrap()
}

fn list<T>(tensor: &Tensor, kind: Kind) -> Vec<T>
where
    Vec<T>: TryFrom<Tensor, Error: std::fmt::Debug>,
{
    Vec::try_from(tensor.to_kind(kind)).unwrap()
}

#[test]
fn steps_equal_diffusers_and_the_closed_form() {
    let data = fixture();
    for (name, steps, eta, offset, schedule) in CASES {
        let at = |key: &str| data[&format!("{name}.{key}")].shallow_clone();
        let table = list::<f64>(&data[&format!("alphas_cumprod.{schedule}")], Kind::Double);
        let ddim = Ddim::from_alphas(table, offset, false, steps, eta).unwrap();
        assert_eq!(ddim.timesteps(), list::<i64>(&at("timesteps"), Kind::Int64), "{name}");
        let timesteps = list::<i64>(&at("timestep"), Kind::Int64);
        let step = ddim.transition(&timesteps, &at("latents"), &at("noise_pred")).unwrap();
        // diffusers works in f32: near t = 1 its 1 − ᾱ_t/ᾱ_t' has lost 4 digits, so 1e-4 there; the closed form is 2e-6.
        let mean = at("mean");
        assert!(largest(&(&step.mean - &mean)) < 1e-4, "{name}: mean {}", largest(&(&step.mean - mean)));
        assert!(largest(&(&step.mean - at("mean64"))) < 3e-5, "{name}: mean64");
        assert!(largest(&(&step.std - at("std64"))) < 1e-6, "{name}: std");
        let x0 = at("pred_x0");
        assert!(largest(&((&step.pred_x0 - &x0) / x0.abs().max())) < 1e-6, "{name}: x0");
        let next = step.sample((eta > 0.0).then(|| at("noise")).as_ref()).unwrap();
        assert!(largest(&(next - at("next_latents"))) < 1e-4, "{name}: sample");
        check_log_prob(name, &ddim, &timesteps, &step, &at("next_latents"), &at("log_prob64"));
    }
}

fn check_log_prob(
    name: &str,
    ddim: &Ddim,
    timesteps: &[i64],
    step: &seedpo_rollout::Transition,
    next: &Tensor,
    expected: &Tensor,
) {
    match timesteps.iter().find(|&&t| ddim.sigma(t).unwrap() == 0.0) {
        Some(&timestep) => {
            let refused = step.log_prob(next).unwrap_err();
            assert!(matches!(refused, Error::NoDensity { timestep: t } if t == timestep), "{name}: {refused}");
        }
        None => {
            let difference = largest(&(step.log_prob(next).unwrap() - expected));
            assert!(difference < 2e-5, "{name}: log-probability {difference}");
        }
    }
}

#[test]
fn the_folder_s_schedule_is_honoured() {
    let schedule = NoiseSchedule::new(&SchedulerConfig::stable_diffusion()).unwrap();
    let ddim = Ddim::new(&schedule, 20, 1.0).unwrap();
    assert_eq!((ddim.timesteps()[0], ddim.timesteps()[19]), (951, 1));
    assert!(ddim.sigma(1).unwrap() > 0.0, "the last step leads to ᾱ_0 and still has noise");
    let to_one = NoiseSchedule { set_alpha_to_one: true, ..schedule.clone() };
    assert_eq!(Ddim::new(&to_one, 20, 1.0).unwrap().sigma(1).unwrap(), 0.0);
    assert_eq!(Ddim::spacing_note(&schedule), None);
    for (spacing, name) in [(TimestepSpacing::Trailing, "trailing"), (TimestepSpacing::Linspace, "linspace")] {
        let other = NoiseSchedule { timestep_spacing: Some(spacing), steps_offset: 0, ..schedule.clone() };
        assert_eq!(Ddim::new(&other, 20, 1.0).unwrap().timesteps(), ddim.timesteps(), "leading, offset 1");
        assert!(Ddim::spacing_note(&other).unwrap().contains(&format!("`timestep_spacing` {name}")));
    }
}

/// A folder saved with another sampler's defaults trains as the published methods do: with the steps of the usual folder.
#[test]
fn training_takes_the_last_step_as_published() {
    let schedule = NoiseSchedule::new(&SchedulerConfig::stable_diffusion()).unwrap();
    let usual = Ddim::new(&schedule, 20, 1.0).unwrap();
    assert_eq!(Ddim::training_note(&schedule), None);
    for (set_alpha_to_one, steps_offset, told) in [
        (true, 1, "`set_alpha_to_one` true,"),
        (false, 0, "`steps_offset` 0,"),
        (true, 0, "`set_alpha_to_one` true and `steps_offset` 0,"),
    ] {
        let other = NoiseSchedule { set_alpha_to_one, steps_offset, ..schedule.clone() };
        let ddim = Ddim::for_training(&other, 20, 1.0).unwrap();
        assert_eq!(ddim.timesteps(), usual.timesteps());
        assert_eq!(ddim.sigma(1).unwrap(), usual.sigma(1).unwrap());
        let note = Ddim::training_note(&other).unwrap();
        assert!(note.contains(told), "{note}");
    }
    let trailing = NoiseSchedule { timestep_spacing: Some(TimestepSpacing::Trailing), ..schedule };
    assert_eq!(Ddim::training_note(&trailing), Ddim::spacing_note(&trailing));
}

/// Betas rescaled to zero terminal SNR: leading steps begin below the timestep at which nothing is left, all others work.
#[test]
fn a_step_from_nothing_but_noise_is_refused() {
    let config = SchedulerConfig { rescale_betas_zero_snr: true, ..SchedulerConfig::stable_diffusion() };
    let schedule = NoiseSchedule::new(&config).unwrap();
    let ddim = Ddim::new(&schedule, 20, 1.0).unwrap();
    assert!(ddim.sigma(998).unwrap() > 0.0);
    let message = ddim.sigma(999).unwrap_err().to_string();
    assert!(
        message.contains("`timestep`: expected at most 998") && message.contains("rescale_betas_zero_snr"),
        "{message}"
    );
    let message = Ddim::new(&schedule, 500, 1.0).unwrap_err().to_string();
    assert!(message.contains("`steps`: expected fewer steps") && message.contains("timestep 999"), "{message}");
}

#[test]
fn rows_without_noise_keep_the_density_of_the_others() {
    tch::manual_seed(4);
    let schedule = NoiseSchedule::new(&SchedulerConfig::stable_diffusion()).unwrap();
    let ddim = Ddim::new(&NoiseSchedule { set_alpha_to_one: true, ..schedule }, 20, 1.0).unwrap();
    let draw = || Tensor::randn([2, 4, 4, 4], (Kind::Float, tch::Device::Cpu));
    let (latents, noise, next) = (draw(), draw(), draw());
    let step = ddim.transition(&[501, 1], &latents, &noise).unwrap();
    assert!(matches!(step.log_prob(&next), Err(Error::NoDensity { timestep: 1 })));
    let found = list::<f64>(&step.log_prob_where_defined(&next).unwrap(), Kind::Double);
    let first = |x: &Tensor| x.narrow(0, 0, 1);
    let alone = ddim.transition(&[501], &first(&latents), &first(&noise)).unwrap().log_prob(&first(&next)).unwrap();
    assert!((found[0] - alone.double_value(&[0])).abs() < 1e-6 && found[1].is_nan(), "{found:?}");
}

#[test]
fn settings_out_of_range_are_named() {
    for (steps, eta, offset, name) in [
        (0, 1.0, 1, "steps"),
        (1001, 1.0, 1, "steps"),
        (1000, 1.0, 1, "steps"),
        (20, 1.5, 1, "eta"),
        (20, f64::NAN, 1, "eta"),
    ] {
        let message = Ddim::from_alphas(alphas(), offset, false, steps, eta).unwrap_err().to_string();
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
    let ddim = sampler(20, 1.0);
    let x = Tensor::zeros([2, 4, 2, 2], (Kind::Float, tch::Device::Cpu));
    assert!(ddim.transition(&[1000], &x, &x).unwrap_err().to_string().contains("timestep"));
    assert!(ddim.transition(&[1, 1, 1], &x, &x).unwrap_err().to_string().contains("timesteps"));
    assert!(ddim.transition(&[1], &x, &x.narrow(0, 0, 1)).unwrap_err().to_string().contains("noise_pred"));
    let step = ddim.transition(&[1], &x, &x).unwrap();
    assert!(step.log_prob(&x.narrow(0, 0, 1)).unwrap_err().to_string().contains("next_latents"));
}

#[test]
fn the_log_ratio_is_the_difference_of_log_probabilities() {
    tch::manual_seed(1);
    let (ddim, t) = (sampler(20, 1.0), [951, 401, 1]);
    let draw = || Tensor::randn([3, 4, 4, 4], (Kind::Float, tch::Device::Cpu));
    let (latents, noise, other) = (draw(), draw(), draw());
    let reference = ddim.transition(&t, &latents, &noise).unwrap();
    let policy = ddim.transition(&t, &latents, &(&noise + other * 0.05)).unwrap();
    let next = reference.sample(Some(&draw())).unwrap();
    let ratio = policy.log_ratio(&reference, &next).unwrap();
    let difference = policy.log_prob(&next).unwrap() - reference.log_prob(&next).unwrap();
    assert!(largest(&(&ratio - difference)) < 2e-5 && largest(&ratio) > 1e-4);
    assert_eq!(largest(&reference.log_ratio(&reference, &next).unwrap()), 0.0);
    let elsewhere = ddim.transition(&[901], &latents, &noise).unwrap();
    assert!(policy.log_ratio(&elsewhere, &next).unwrap_err().to_string().contains("timesteps"));
}

#[test]
fn gradients_flow_through_the_mean_and_equal_the_closed_form() {
    tch::manual_seed(2);
    let (ddim, t) = (sampler(20, 1.0), [951, 401, 51]);
    let draw = || Tensor::randn([3, 4, 4, 4], (Kind::Float, tch::Device::Cpu));
    let (latents, noise, next) = (draw(), draw().set_requires_grad(true), draw());
    let step = ddim.transition(&t, &latents, &noise).unwrap();
    step.log_prob(&next).unwrap().sum(Kind::Float).backward();
    let slopes = t.map(|t| ddim.mean_slope(t).unwrap());
    let closed = step.log_prob_gradient(&next, &slopes).unwrap();
    let scale = largest(&closed);
    assert!(largest(&(noise.grad() - closed)) < 1e-5 * scale);
}

/// Whatever dtype the U-Net has, the step is computed in f32: bf16 would make the ratio of equal policies wander.
#[test]
fn half_precision_inputs_are_widened_first() {
    tch::manual_seed(3);
    let ddim = sampler(20, 1.0);
    let draw = || Tensor::randn([2, 4, 4, 4], (Kind::Float, tch::Device::Cpu)).to_kind(Kind::BFloat16);
    let (latents, noise) = (draw(), draw());
    let narrow = ddim.transition(&[401], &latents, &noise).unwrap();
    let wide = ddim.transition(&[401], &latents.to_kind(Kind::Float), &noise.to_kind(Kind::Float)).unwrap();
    assert_eq!(narrow.mean.kind(), Kind::Float);
    assert!(same(&narrow.mean, &wide.mean));
    assert_eq!(narrow.log_prob(&latents).unwrap().kind(), Kind::Float);
}
