use super::*;
use seedpo_tensor::WeightFile;
use tch::{Device, Kind};

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
    let config = TrainConfig {
        lr_scheduler: "cosine".into(),
        lr_warmup_steps: 5,
        max_train_steps: 50,
        ..TrainConfig::default()
    };
    let schedule = LrSchedule::from_settings(&config).unwrap();
    let mut optimizer = start(&file);
    for step in 0..50 {
        let (g, norm) = gradients(&file, step);
        let lr = 1e-2 * schedule.factor(step as u64);
        assert!((norm / norms.double_value(&[step]) - 1.0).abs() < 1e-6);
        assert!((lr - lrs.double_value(&[step])).abs() < 1e-12);
        optimizer.step(&g, lr).unwrap();
        for (i, reference) in expected.iter().enumerate() {
            let difference = (&optimizer.parameters()[i].1 - reference.get(step)).abs().max().double_value(&[]);
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
    let saved: BTreeMap<_, _> = whole.state().into_iter().map(|(k, v)| (k, v.copy())).collect();
    let values: Vec<_> = whole.parameters().iter().map(|(n, p)| (n.clone(), p.copy())).collect();
    run(&mut whole, 10..20);
    let mut resumed = AdamW::new(values, OPTIONS);
    resumed.load_state(saved, Path::new("x")).unwrap();
    run(&mut resumed, 10..20);
    for (one, other) in whole.parameters().iter().zip(resumed.parameters()) {
        assert!(one.1.equal(&other.1));
    }
    resumed.reset();
    assert_eq!(resumed.steps(), 0);
    assert_eq!(resumed.state(), start(&file).state());
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
    let message =
        refused(&mut optimizer, &|s| drop(s.insert("second.b".into(), Tensor::zeros([2], (Kind::Float, Device::Cpu)))));
    assert!(message.contains("second.b") && message.contains("[2]"), "{message}");
    let message =
        refused(&mut optimizer, &|s| drop(s.insert("other".into(), Tensor::zeros([2], (Kind::Float, Device::Cpu)))));
    assert!(message.contains("`other`"));
}

/// From a file, one tensor at a time, into the moments' own memory; what does not fit changes nothing.
#[test]
fn state_is_read_from_a_file_in_place() {
    let (file, folder) = (fixture(), tempfile::tempdir().unwrap());
    let path = folder.path().join("optimizer.safetensors");
    let written = |state: &BTreeMap<String, Tensor>| {
        seedpo_tensor::write_weights(&path, state, &BTreeMap::new()).unwrap();
        WeightFile::open(&path).unwrap()
    };
    let mut whole = start(&file);
    (0..3).for_each(|step| whole.step(&gradients(&file, step).0, 1e-2).unwrap());
    let state = whole.state();
    let mut resumed = start(&file);
    let places: Vec<_> = resumed.state().into_iter().filter(|(name, _)| name != "steps").collect();
    resumed.load_state(&written(&state), &path).unwrap();
    assert_eq!((resumed.steps(), resumed.state()), (3, state));
    for (name, place) in places {
        assert_eq!(place.data_ptr(), resumed.state()[&name].data_ptr(), "{name}");
    }
    let mut lacking = adafactor(&file).state();
    assert!(resumed.load_state(&written(&lacking), &path).unwrap_err().to_string().contains("first.a"));
    assert_eq!(resumed.state(), whole.state());
    let mut other = adafactor(&file);
    lacking.insert("row.a".into(), Tensor::ones([1], (Kind::Float, Device::Cpu)));
    let message = other.load_state(&written(&lacking), &path).unwrap_err().to_string();
    assert!(message.contains("`row.a`: expected f32") && message.contains("[1]"), "{message}");
    assert_eq!(other.state(), adafactor(&file).state());
}

const ADAFACTOR: [&str; 4] = ["a", "b", "c", "d"];

fn adafactor(file: &WeightFile) -> Adafactor {
    let take = |n: &&str| (n.to_string(), file.tensor(&format!("adafactor.initial.{n}")).unwrap());
    Adafactor::new(ADAFACTOR.iter().map(take).collect(), 1e-2)
}

fn adafactor_step(optimizer: &mut Adafactor, file: &WeightFile, step: i64) {
    let gradient = |n: &&str| file.tensor(&format!("adafactor.gradients.{n}")).unwrap().get(step).copy();
    let gradients: Vec<Tensor> = ADAFACTOR.iter().map(gradient).collect();
    optimizer.step(&gradients, 1e-2).unwrap();
}

/// 50 steps on a matrix, a vector, a kernel and a scalar, as transformers takes them.
#[test]
fn adafactor_equals_transformers() {
    let file = fixture();
    let expected = ADAFACTOR.map(|n| file.tensor(&format!("adafactor.parameters.{n}")).unwrap());
    let mut optimizer = adafactor(&file);
    for step in 0..50 {
        adafactor_step(&mut optimizer, &file, step);
        for ((name, parameter), reference) in optimizer.parameters().iter().zip(&expected) {
            let difference = (parameter - reference.get(step)).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "step {step} parameter {name}: {difference}");
        }
    }
}

#[test]
fn adafactor_continues_bit_for_bit_and_refuses_adamw() {
    let file = fixture();
    let mut whole = adafactor(&file);
    (0..10).for_each(|step| adafactor_step(&mut whole, &file, step));
    let saved: BTreeMap<_, _> = whole.state().into_iter().map(|(k, v)| (k, v.copy())).collect();
    let values: Vec<_> = whole.parameters().iter().map(|(n, p)| (n.clone(), p.copy())).collect();
    let mut resumed = Adafactor::new(values, 1e-2);
    resumed.load_state(saved, Path::new("x")).unwrap();
    for step in 10..20 {
        adafactor_step(&mut whole, &file, step);
        adafactor_step(&mut resumed, &file, step);
    }
    for (one, other) in whole.parameters().iter().zip(resumed.parameters()) {
        assert!(one.1.equal(&other.1));
    }
    resumed.reset();
    assert_eq!(resumed.state(), adafactor(&file).state());
    let message = resumed.load_state(start(&file).state(), Path::new("x")).unwrap_err().to_string();
    assert!(message.contains("`row.a`"), "{message}");
}

#[test]
fn averages_equal_diffusers() {
    let file = fixture();
    let at = |what: &str, name: &str| file.tensor(&format!("{what}.{name}")).unwrap();
    let mut average = Ema::new(["a", "b"].map(|n| at("initial", n).copy()).into(), 0.6);
    for step in 0..50 {
        let parameters = ["a", "b"].map(|n| at("parameters", n).get(step));
        average.step(parameters.iter(), step as u64 + 1).unwrap();
        for (shadow, name) in average.shadows().iter().zip(["a", "b"]) {
            let difference = (shadow - at("averages", name).get(step)).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "step {step} parameter {name}: {difference}");
        }
    }
}
