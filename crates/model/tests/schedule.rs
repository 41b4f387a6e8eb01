//! The noise schedule against diffusers' schedulers. Fixture: python/fixtures/schedule.py.

use std::path::Path;

use seedpo_model::config::{PredictionType, SchedulerConfig, TimestepSpacing};
use seedpo_model::schedule::NoiseSchedule;
use seedpo_tensor::WeightFile;
use tch::{Kind, Tensor};

fn fixture() -> WeightFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schedule.safetensors");
    WeightFile::open(&path).unwrap()
}

fn schedule(file: &WeightFile, case: &str) -> NoiseSchedule {
    let config = SchedulerConfig::from_json(&file.metadata()[case], Path::new("scheduler_config.json")).unwrap();
    NoiseSchedule::new(&config).unwrap()
}

fn worst(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn alphas_equal_those_of_diffusers_bit_for_bit() {
    let file = fixture();
    for case in ["sd15", "sd21", "euler", "linear", "cosine", "trained", "zero"] {
        let expected = file.tensor(&format!("{case}.alphas_cumprod")).unwrap().to_kind(Kind::Double);
        let expected = Vec::<f64>::try_from(expected).unwrap();
        let found = schedule(&file, case);
        assert_eq!(found.alphas_cumprod, expected, "{case}");
        assert_eq!(found.num_train_timesteps as usize, expected.len());
    }
}

#[test]
fn the_options_of_the_folder_are_kept() {
    let file = fixture();
    let (sd15, sd21, euler) = (schedule(&file, "sd15"), schedule(&file, "sd21"), schedule(&file, "euler"));
    assert_eq!((sd15.prediction_type, sd15.steps_offset, sd15.set_alpha_to_one), (PredictionType::Epsilon, 1, false));
    assert_eq!(sd21.prediction_type, PredictionType::VPrediction);
    assert_eq!(euler.timestep_spacing, Some(TimestepSpacing::Trailing));
    assert_eq!(sd15.alpha_cumprod(-1), sd15.alphas_cumprod[0]);
    assert_eq!(schedule(&file, "linear").alpha_cumprod(-1), 1.0);
}

/// 1e-6: two f32 roundings of numbers below 5.
#[test]
fn noising_and_velocity_equal_those_of_diffusers() {
    let file = fixture();
    for case in ["sd15", "sd21", "euler", "linear", "cosine", "trained", "zero"] {
        let get = |name: &str| file.tensor(&format!("{case}.{name}")).unwrap();
        let s = schedule(&file, case);
        let (x0, noise, t) = (get("x0"), get("noise"), get("timesteps"));
        assert!(worst(&s.add_noise(&x0, &noise, &t).unwrap(), &get("noisy")) < 1e-6, "{case}");
        let v = s.velocity(&x0, &noise, &t).unwrap();
        assert!(worst(&v, &get("velocity")) < 1e-6, "{case}");
        let noisy = get("noisy");
        assert!(worst(&s.eps_from_v(&v, &noisy, &t).unwrap(), &noise) < 2e-6, "{case}");
    }
}

/// 2e-5: the reference value was solved for from diffusers' f32 step, which divides by √(1−ᾱ) ≥ 0.1.
#[test]
fn a_v_output_becomes_the_noise_that_diffusers_steps_with() {
    let file = fixture();
    let get = |name: &str| file.tensor(&format!("v.{name}")).unwrap();
    let found = schedule(&file, "sd21").to_epsilon(&get("output"), &get("latents"), &get("timesteps")).unwrap();
    assert!(worst(&found, &get("epsilon")) < 2e-5);
    let (s, x, t) = (schedule(&file, "sd21"), get("latents"), get("timesteps"));
    let clean = s.to_clean(&get("output"), &x, &t).unwrap();
    assert!(worst(&clean, &s.clean_latents(&x, &found, &t).unwrap()) < 2e-5);
    let plain = schedule(&file, "sd15").to_epsilon(&get("output"), &get("latents"), &get("timesteps")).unwrap();
    assert_eq!(plain, get("output"));
}

/// As above; diffusers divides by √(1−ᾱ') ≥ 0.03 here.
#[test]
fn clean_latents_as_output_become_the_noise_that_diffusers_steps_with() {
    let file = fixture();
    let get = |name: &str| file.tensor(name).unwrap();
    let schedule = schedule(&file, "sample");
    assert_eq!(schedule.prediction_type, PredictionType::Sample);
    let (x, x0, t) = (get("v.latents"), get("v.output"), get("v.timesteps"));
    let found = schedule.to_epsilon(&x0, &x, &t).unwrap();
    assert!(worst(&found, &get("sample.epsilon")) < 1e-4, "{}", worst(&found, &get("sample.epsilon")));
    assert!(worst(&schedule.clean_latents(&x, &found, &t).unwrap(), &x0) < 1e-4);
}

#[test]
fn nothing_is_told_by_the_noise_where_nothing_else_is_left() {
    let schedule = schedule(&fixture(), "zero");
    assert_eq!(schedule.alphas_cumprod[999], 0.0);
    let x = Tensor::randn([1, 4, 2, 2], tch::kind::FLOAT_CPU);
    let at = |t: i64| schedule.clean_latents(&x, &x, &Tensor::from_slice(&[t]));
    assert!(at(998).is_ok());
    let message = at(999).unwrap_err().to_string();
    assert!(message.contains("`timestep`: expected below 999") && message.contains("rescaled"), "{message}");
    // What v or the clean latents themselves say of the picture needs none of it.
    let (v, last) = (&x * 3.0, Tensor::from_slice(&[999i64]));
    assert_eq!(schedule.to_clean(&v, &x, &last).unwrap(), -&v);
    let sample = NoiseSchedule { prediction_type: PredictionType::Sample, ..schedule.clone() };
    assert_eq!(sample.to_clean(&v, &x, &last).unwrap(), v);
    let epsilon = NoiseSchedule { prediction_type: PredictionType::Epsilon, ..schedule.clone() };
    assert!(epsilon.to_clean(&v, &x, &last).is_err());
    // A v-prediction model's noise there is all of x_t.
    assert_eq!(schedule.to_epsilon(&(&x * 3.0), &x, &Tensor::from_slice(&[999i64])).unwrap(), x);
}

#[test]
fn one_timestep_serves_a_batch_and_one_outside_is_refused() {
    let s = schedule(&fixture(), "sd15");
    let (x, n) = (Tensor::randn([2, 4, 2, 2], tch::kind::FLOAT_CPU), Tensor::randn([2, 4, 2, 2], tch::kind::FLOAT_CPU));
    let one = s.add_noise(&x, &n, &Tensor::from_slice(&[500i64])).unwrap();
    assert_eq!(one, s.add_noise(&x, &n, &Tensor::from_slice(&[500i64, 500])).unwrap());
    for t in [-1i64, 1000] {
        let message = s.add_noise(&x, &n, &Tensor::from_slice(&[t])).unwrap_err().to_string();
        assert!(message.contains("timestep") && message.contains("0 to 999") && message.contains(&t.to_string()));
    }
    assert!(s.add_noise(&x, &n, &Tensor::from_slice(&[1i64, 2, 3])).is_err());
}

#[test]
fn schedules_that_are_none_are_refused_by_name() {
    let good = SchedulerConfig::stable_diffusion();
    let cases = [
        (SchedulerConfig { num_train_timesteps: 1, rescale_betas_zero_snr: true, ..good.clone() }, "betas"),
        (
            SchedulerConfig {
                beta_start: -0.1,
                beta_schedule: seedpo_model::config::BetaSchedule::Linear,
                ..good.clone()
            },
            "betas",
        ),
        (SchedulerConfig { beta_end: f64::NAN, ..good.clone() }, "betas"),
        (SchedulerConfig { beta_start: 0.9, beta_end: 0.9, ..good.clone() }, "alphas_cumprod"),
    ];
    for (config, key) in cases {
        let message = NoiseSchedule::new(&config).unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
    }
    for (json, key) in [
        (r#"{"prediction_type": "flow_prediction"}"#, "prediction_type"),
        (r#"{"beta_schedule": "sigmoid"}"#, "beta_schedule"),
        (r#"{"beta_start": 0}"#, "beta_start"),
        (r#"{"num_train_timesteps": 0}"#, "num_train_timesteps"),
        (r#"{"beta_strat": 0.1}"#, "beta_strat"),
    ] {
        let message = SchedulerConfig::from_json(json, Path::new("scheduler_config.json")).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains("scheduler_config.json"), "{message}");
    }
}
