//! A whole run on six emoji and tiny networks: it trains, resumes bit for bit, and writes a folder that loads.

use std::path::{Path, PathBuf};

use seedpo_model::{ClipTokenizer, DiffusionModel, LoadOptions};
use seedpo_pretrain::measure::{SampleSettings, measure};
use seedpo_pretrain::recipe::{Compute, Sizes, StageSettings};
use seedpo_pretrain::{Dataset, Error, Observer, Recipe, RunOptions, Silent, StageReport, run};
use seedpo_tensor::WeightFile;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn tiny(work: &Path) -> RunOptions {
    // Tiny tensors: more threads only wait for each other.
    tch::set_num_threads(1);
    let sizes = Sizes {
        image: 64,
        vae_channels: vec![4, 4, 8, 8],
        latent_channels: 4,
        vae_groups: 2,
        unet_channels: vec![8, 16],
        unet_layers: 1,
        heads: 2,
        unet_groups: 4,
        text_width: 16,
        text_layers: 1,
        vocab: 560,
        tokens: 16,
    };
    let recipe = Recipe {
        sizes,
        vae: StageSettings { steps: 4, batch: 4, lr: 1e-3, warmup: 2 },
        denoiser: StageSettings { steps: 4, batch: 4, lr: 1e-3, warmup: 2 },
        ..Recipe::default()
    };
    let (data, work) = (fixtures().join("emoji"), work.to_path_buf());
    RunOptions { data, work, recipe, resume: false, checkpoint_every: 1, preview_every: 0 }
}

/// Asks to stop after so many steps of a stage.
struct StopAt(&'static str, u64, bool);

impl Observer for StopAt {
    fn on_step(&mut self, report: &StageReport) {
        assert!(report.loss.is_finite());
        self.2 = report.stage == self.0 && report.step == self.1;
    }

    fn stop(&self) -> bool {
        self.2
    }
}

fn weights(folder: &Path) -> Vec<Vec<u8>> {
    let files = ["vae/diffusion_pytorch_model", "unet/diffusion_pytorch_model", "text_encoder/model"];
    files.iter().map(|f| std::fs::read(folder.join(format!("{f}.safetensors"))).unwrap()).collect()
}

#[test]
fn a_resumed_run_ends_with_the_same_bits() {
    let scratch = tempfile::tempdir().unwrap();
    let whole = tiny(&scratch.path().join("whole"));
    let folder = run(&whole, &mut Silent).unwrap();
    let mut broken = tiny(&scratch.path().join("broken"));
    for (stage, step) in [("vae", 2), ("vae", 3), ("denoiser", 1), ("denoiser", 3)] {
        let stopped = run(&broken, &mut StopAt(stage, step, false)).unwrap_err();
        assert!(matches!(stopped, Error::Stopped { stage: s, step: n } if s == stage && n == step), "{stopped}");
        broken.resume = true;
    }
    let resumed = run(&broken, &mut Silent).unwrap();
    assert!(weights(&folder) == weights(&resumed), "whole and resumed run differ");

    let started = run(&whole, &mut Silent).unwrap_err().to_string();
    assert!(started.contains("continue it with --resume"), "{started}");
    broken.recipe.denoiser.lr = 2e-3;
    let other = run(&broken, &mut Silent).unwrap_err().to_string();
    assert!(other.contains("denoiser-checkpoint.safetensors") && other.contains("another recipe"), "{other}");
    let lines = std::fs::read_to_string(scratch.path().join("broken/metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 8, "one line per step, none twice");
}

#[test]
fn the_folder_loads_and_can_be_measured() {
    let scratch = tempfile::tempdir().unwrap();
    let mut options = tiny(scratch.path());
    options.recipe.compute = Compute::F32;
    options.recipe.prediction = "epsilon".into();
    options.preview_every = 3;
    let folder = run(&options, &mut Silent).unwrap();
    for preview in ["vae-000003.png", "vae-000004.png", "samples-000003.png", "samples-000004.png"] {
        assert!(scratch.path().join("previews").join(preview).is_file(), "{preview}");
    }
    let unet = WeightFile::open(&folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(unet.kind("conv_in.weight"), Some(seedpo_tensor::Kind::Half));
    let model = DiffusionModel::load(&folder, &LoadOptions::default()).unwrap();
    let data = Dataset::read(&options.data, 64).unwrap();
    let settings = SampleSettings { steps: 3, ..SampleSettings::default() };
    let (figure, latents) = measure(&model, &data, 4, settings, &mut |_| ()).unwrap();
    assert_eq!((figure.names, latents.size()), (4, vec![4, 4, 8, 8]));
    assert!(figure.name_or_subcategory >= figure.name && figure.rows.len() == 4);
    let (again, _) = measure(&model, &data, 4, settings, &mut |_| ()).unwrap();
    assert_eq!(figure, again);
}

#[test]
fn the_latents_of_an_image_are_nearest_to_that_image() {
    let scratch = tempfile::tempdir().unwrap();
    let mut options = tiny(scratch.path());
    options.recipe.denoiser.steps = 1;
    let folder = run(&options, &mut Silent).unwrap();
    let model = DiffusionModel::load(&folder, &LoadOptions::default()).unwrap();
    let data = Dataset::read(&options.data, 64).unwrap();
    let (latents, factor) = seedpo_pretrain::vae_stage::encode_all(&model.vae, &data).unwrap();
    let deviation = (latents * model.vae.scaling_factor()).std(true).double_value(&[]);
    // f16 storage: the factor was measured before rounding.
    assert!((deviation - 1.0).abs() < 1e-2 && (factor / model.vae.scaling_factor() - 1.0).abs() < 1e-2);
}

#[test]
fn the_trained_vocabulary_gives_the_ids_of_transformers() {
    let scratch = tempfile::tempdir().unwrap();
    let data = Dataset::read(&fixtures().join("emoji"), 64).unwrap();
    let bpe = seedpo_pretrain::bpe::Bpe::train(&seedpo_pretrain::captions::corpus(&data.emoji), 560);
    bpe.save(&scratch.path().join("tokenizer"), 16).unwrap();
    let tokenizer = ClipTokenizer::from_folder(scratch.path()).unwrap();
    let cases = seedpo_tensor::read_text(&fixtures().join("tokenizer.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&cases).unwrap();
    for case in cases["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let expected: Vec<i64> = case["ids"].as_array().unwrap().iter().map(|i| i.as_i64().unwrap()).collect();
        let found = Vec::<i64>::try_from(tokenizer.encode(&[text]).unwrap().reshape([-1])).unwrap();
        assert_eq!(found, expected, "{text:?}");
    }
}
