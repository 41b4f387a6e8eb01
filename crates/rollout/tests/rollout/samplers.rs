//! Whole walks against diffusers' schedulers, on given model outputs. Fixture: python/fixtures/samplers.py.

use std::cell::RefCell;
use std::path::Path;

use seedpo_model::SchedulerConfig;
use seedpo_model::config::PredictionType;
use seedpo_model::schedule::NoiseSchedule;
use seedpo_rollout::{OutputPredictor, Result, Sampler, SamplerKind, draw, initial_noise, step_noise};
use seedpo_tensor::WeightFile;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::toy::{keys, largest, same};

fn fixture(name: &str) -> WeightFile {
    WeightFile::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// Largest difference relative to the largest value.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    largest(&(found - expected)) / largest(expected)
}

fn schedule(config: &str) -> NoiseSchedule {
    NoiseSchedule::new(&SchedulerConfig::from_json(config, Path::new("scheduler_config.json")).unwrap()).unwrap()
}

#[test]
fn every_step_equals_diffusers() {
    let file = fixture("samplers.safetensors");
    let cases: Vec<Value> = serde_json::from_str(&file.metadata()["cases"]).unwrap();
    assert!(cases.len() > 30);
    let (x_t, outputs, noise) =
        (file.tensor("x_t").unwrap(), file.tensor("outputs").unwrap(), file.tensor("noise").unwrap());
    for case in &cases {
        let key = case["key"].as_str().unwrap();
        let at = |part: &str| file.tensor(&format!("{key}.{part}")).unwrap();
        let kind: SamplerKind = case["sampler"].as_str().unwrap().parse().unwrap();
        let schedule = schedule(&case["scheduler_config"].to_string());
        let sampler = Sampler::new(kind, &schedule, case["steps"].as_u64().unwrap() as usize, 0.0).unwrap();
        let timesteps = Tensor::from_slice(&sampler.timesteps().collect::<Vec<_>>());
        assert!(largest(&(timesteps - at("timesteps").to_kind(Kind::Double))) < 2e-3, "{key}: timesteps");
        let sigma = at("init_noise_sigma").double_value(&[0]);
        assert!((sampler.init_noise_sigma() / sigma - 1.0).abs() < 1e-6, "{key}: init_noise_sigma");
        // diffusers' f32 latents lose digits where σ is 4096.
        let tolerance = if schedule.alpha_cumprod(999) == 0.0 { 1e-4 } else { 2e-5 };
        let mut walk = sampler.start(&x_t).unwrap();
        for step in 0..sampler.steps() {
            let (input, _) = walk.request().unwrap();
            let i = step as i64;
            let apart = relative(&input, &at("inputs").get(i));
            assert!(apart < tolerance, "{key}: input of step {step}: {apart:.1e}");
            walk.advance(&outputs.get(i), sampler.draws_noise(step).then(|| noise.get(i)).as_ref()).unwrap();
            let apart = relative(walk.latents(), &at("latents").get(i));
            assert!(apart < tolerance, "{key}: latents after step {step}: {apart:.1e}");
        }
        assert!(walk.request().is_none() && walk.advance(&x_t, None).is_err());
    }
}

/// Output tanh(x) + t/2000; remembers the timesteps it was asked at.
#[derive(Default)]
struct Toy(RefCell<Vec<f64>>);

impl OutputPredictor for Toy {
    fn output(&self, latents: &Tensor, timestep: f64, prompts: &[usize]) -> Result<Tensor> {
        assert_eq!(latents.size()[0] as usize, prompts.len());
        self.0.borrow_mut().push(timestep);
        Ok(latents.tanh() + timestep / 2000.0)
    }
}

#[test]
fn pictures_do_not_depend_on_the_batch() {
    let schedule = NoiseSchedule::new(&SchedulerConfig::stable_diffusion()).unwrap();
    for name in SamplerKind::names() {
        let sampler = Sampler::new(name.parse().unwrap(), &schedule, 8, 0.0).unwrap();
        let run = |rows: std::ops::Range<usize>| {
            let keys = &keys(3)[rows.clone()];
            let shape = [4, 2, 2];
            let mut noise = |step: usize| step_noise(keys, step, &shape);
            let prompts: Vec<usize> = rows.collect();
            draw(&Toy::default(), &initial_noise(keys, &shape), &prompts, &sampler, &mut noise, &mut |_, _| ()).unwrap()
        };
        assert!(same(&run(0..3).narrow(0, 2, 1), &run(2..3)), "{name}");
    }
}

#[test]
fn the_model_is_asked_once_a_step_at_the_samplers_timesteps() {
    let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
    let sampler = Sampler::new(SamplerKind::Euler, &schedule, 7, 0.0).unwrap();
    let (toy, mut steps) = (Toy::default(), Vec::new());
    let mut no_noise = |_: usize| panic!("Euler draws no noise");
    let x_t = initial_noise(&keys(2), &[4, 2, 2]);
    let _ = draw(&toy, &x_t, &[0, 1], &sampler, &mut no_noise, &mut |done, total| steps.push((done, total))).unwrap();
    assert_eq!(*toy.0.borrow(), sampler.timesteps().collect::<Vec<_>>());
    assert_eq!(toy.0.borrow()[1], 832.5);
    assert_eq!(steps, (1..=7).map(|done| (done, 7)).collect::<Vec<_>>());
}

#[test]
fn bad_settings_are_named() {
    let schedule = NoiseSchedule::new(&SchedulerConfig::stable_diffusion()).unwrap();
    let text = |kind, steps, eta| Sampler::new(kind, &schedule, steps, eta).unwrap_err().to_string();
    assert!(text(SamplerKind::Euler, 0, 0.0).contains("`steps`: expected 1 to 1000"));
    assert!(text(SamplerKind::Ddim, 1001, 0.0).contains("found 1001"));
    assert!(text(SamplerKind::Ddim, 1000, 0.0).contains("fewer steps"));
    assert!(text(SamplerKind::DpmPlusPlus2M, 1000, 0.0).contains("fewer steps"));
    assert!(text(SamplerKind::Euler, 20, 0.5).contains("`eta`"));
    assert!(text(SamplerKind::Ddim, 20, f64::NAN).contains("`eta`"));
    let sampler = Sampler::new(SamplerKind::EulerAncestral, &schedule, 3, 0.0).unwrap();
    let x_t = initial_noise(&keys(1), &[4, 2, 2]);
    let mut walk = sampler.start(&x_t).unwrap();
    assert!(walk.advance(&x_t, None).unwrap_err().to_string().contains("noise"));
    assert!(walk.advance(&x_t.narrow(1, 0, 2), Some(&x_t)).unwrap_err().to_string().contains("output"));
}

/// Where the last ᾱ is 0, predicted noise tells nothing of the picture: diffusers' DDIM divides by 0.
#[test]
fn noise_alone_is_refused_where_a_step_needs_more() {
    let config =
        r#"{"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}"#;
    let epsilon = schedule(config);
    let message = Sampler::new(SamplerKind::Ddim, &epsilon, 10, 0.0).unwrap_err().to_string();
    for part in ["`prediction_type`", "timestep 999", "rescale_betas_zero_snr", "leading", "found epsilon"] {
        assert!(message.contains(part), "{message}");
    }
    let leading = NoiseSchedule { timestep_spacing: None, ..epsilon.clone() };
    assert!(Sampler::new(SamplerKind::Ddim, &leading, 10, 0.0).is_ok());
    for prediction_type in [PredictionType::VPrediction, PredictionType::Sample] {
        let schedule = NoiseSchedule { prediction_type, ..epsilon.clone() };
        assert!(Sampler::new(SamplerKind::Ddim, &schedule, 10, 1.0).is_ok());
    }
}
