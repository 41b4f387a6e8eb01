//! Every judge with weights against its reference implementation; fixture by `python/fixtures/judges.py`.

mod common;

use std::path::Path;

use common::cases::{Case, cases, relative_error, write};
use common::picture;
use seedpo_judge::{Judge, JudgeOptions, load, recognised};
use tch::{Kind, Tensor};

fn built(case: &Case, options: &JudgeOptions) -> Box<dyn Judge> {
    let folder = tempfile::tempdir().unwrap();
    write(case, folder.path());
    load(&case.judge, &[folder.path().to_path_buf()], options).unwrap_or_else(|e| panic!("{}: {e}", case.judge))
}

fn scores(case: &Case, judge: &dyn Judge) -> Vec<f64> {
    let one = |at: usize| {
        let (image, prompt) = (&case.pictures[at], [case.prompts[at].as_str()]);
        let scores = match &case.steps {
            None => judge.score(image, &prompt),
            Some(steps) => {
                let floats = image.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0 * 2.0 - 1.0;
                judge.score_step(&floats, steps[at], &prompt)
            }
        };
        scores.unwrap()[0]
    };
    (0..case.pictures.len()).map(one).collect()
}

#[test]
fn scores_equal_the_reference_implementations() {
    let cases = cases();
    assert_eq!(cases.len(), 8);
    for case in &cases {
        let folder = tempfile::tempdir().unwrap();
        write(case, folder.path());
        let judge = load(&case.judge, &[folder.path().to_path_buf()], &JudgeOptions::default()).unwrap();
        // Its tensors tell which it is, but for transformers' plain CLIPs and HPS's two ways to resize.
        let recognised = recognised(&[folder.path().to_path_buf()]).unwrap();
        assert!(case.judge.starts_with(recognised) || case.judge == "clipscore", "{recognised}: {}", case.judge);
        let found = scores(case, judge.as_ref());
        let error = relative_error(&found, &case.scores);
        assert!(error < 1e-4, "{}: {error:e}\n found {found:?}\n expected {:?}", case.judge, case.scores);
        // Again from the caches.
        assert_eq!(scores(case, judge.as_ref()), found, "{}", case.judge);
    }
}

#[test]
fn bf16_stays_near() {
    for case in cases().iter().filter(|case| case.steps.is_none()) {
        let judge = built(case, &JudgeOptions { kind: Kind::BFloat16, ..JudgeOptions::default() });
        let error = relative_error(&scores(case, judge.as_ref()), &case.scores);
        // Eight bits of mantissa through a few layers; random weights have no slack.
        assert!(error > 0.0 && error < 0.15, "{}: {error}", case.judge);
    }
}

#[test]
fn a_batch_scores_like_its_pictures_one_by_one() {
    let images = Tensor::cat(&[picture(40, 24, 1), picture(40, 24, 2), picture(40, 24, 1), picture(40, 24, 3)], 0);
    let prompts = ["a red apple", "a red apple", "two cats", "an astronaut riding a horse on the mat in naive art"];
    for case in &cases() {
        let batch = built(case, &JudgeOptions { batch_size: 3, ..JudgeOptions::default() });
        let together = batch.score(&images, &prompts).unwrap();
        let alone = built(case, &JudgeOptions { batch_size: 1, ..JudgeOptions::default() });
        let apart: Vec<f64> =
            (0..4).flat_map(|i| alone.score(&images.narrow(0, i, 1), &prompts[i as usize..][..1]).unwrap()).collect();
        assert!(relative_error(&together, &apart) < 1e-5, "{}: {together:?} {apart:?}", case.judge);
        assert_eq!(batch.score(&Tensor::zeros([0, 4, 4, 3], (Kind::Uint8, tch::Device::Cpu)), &[]).unwrap(), [0.0; 0]);
    }
}

#[test]
fn the_version_of_hps_is_told_by_the_name_of_its_file() {
    let (folder, all) = (tempfile::tempdir().unwrap(), cases());
    let case = all.iter().find(|case| case.judge == "hpsv2").unwrap();
    let [older, newer] = [("v2.1", "HPS_v2_compressed.pt", "hpsv2"), ("v2", "HPS_v2.1_compressed.pt", "hpsv2.1")].map(
        |(inside, file, name)| {
            let inside = folder.path().join(inside);
            std::fs::create_dir(&inside).unwrap();
            write(case, &inside);
            let path = inside.join(file);
            if name == "hpsv2.1" {
                std::fs::rename(inside.join("HPS_v2_compressed.pt"), &path).unwrap();
            }
            assert_eq!(recognised(std::slice::from_ref(&path)).unwrap(), name);
            assert_eq!(recognised(&[inside]).unwrap(), name);
            path
        },
    );
    let text = recognised(&[older, newer]).unwrap_err().to_string();
    assert!(text.contains("v2 and v2.1"), "{text}");
}

#[test]
fn a_single_file_serves_where_shapes_tell_enough_and_errors_say_what_is_missing() {
    let cases = cases();
    let folder = tempfile::tempdir().unwrap();
    let case = |name: &str| cases.iter().find(|case| case.judge == name).unwrap();
    write(case("hpsv2"), folder.path());
    let file = folder.path().join("HPS_v2_compressed.pt");
    // The configuration beside the file is found.
    let judge = load("hpsv2", std::slice::from_ref(&file), &JudgeOptions::default()).unwrap();
    assert!(relative_error(&scores(case("hpsv2"), judge.as_ref()), &case("hpsv2").scores) < 1e-4);
    std::fs::remove_file(folder.path().join("open_clip_config.json")).unwrap();
    let message = |name: &str, path: &Path| {
        load(name, &[path.to_path_buf()], &JudgeOptions::default()).err().unwrap().to_string()
    };
    let text = message("hpsv2", &file);
    assert!(text.contains("num_attention_heads") && text.contains("open_clip_config.json"), "{text}");
    // A file of another kind in the folder is passed over, but named where nothing fits.
    std::fs::write(folder.path().join("rng_state.pth"), b"no weights").unwrap();
    assert!(message("hpsv2", folder.path()).contains("num_attention_heads"));
    assert!(message("spm", folder.path()).contains("rng_state.pth"));
    std::fs::remove_file(folder.path().join("rng_state.pth")).unwrap();
    let text = message("imagereward", folder.path());
    assert!(text.contains("ImageReward") && text.contains("a CLIP (OpenCLIP)"), "{text}");
    let text = message("spm", folder.path());
    assert!(text.contains("timestep"), "{text}");
    assert!(message("pickscore", &folder.path().join("none")).contains("none"));
    let empty = tempfile::tempdir().unwrap();
    assert!(message("pickscore", empty.path()).contains("no weight file"));
    write(case("imagereward"), empty.path());
    std::fs::remove_file(empty.path().join("vocab.txt")).unwrap();
    assert!(message("imagereward", empty.path()).contains("vocab.txt"));
}

#[test]
fn a_file_that_is_named_is_read_whatever_it_is_called() {
    let (folder, all) = (tempfile::tempdir().unwrap(), cases());
    let case = all.iter().find(|case| case.judge == "pickscore").unwrap();
    write(case, folder.path());
    let mut path = folder.path().join("model.safetensors");
    for name in
        ["checkpoint.pt", "checkpoint_best.pth", "scheduler_x.safetensors", "model-00001-of-00001.bin", "0a1b2c"]
    {
        let renamed = folder.path().join(name);
        std::fs::rename(&path, &renamed).unwrap();
        path = renamed;
        // With its configuration, which is no weights.
        let paths = [folder.path().join("config.json"), path.clone()];
        let judge = load("pickscore", &paths, &JudgeOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(relative_error(&scores(case, judge.as_ref()), &case.scores) < 1e-4, "{name}");
        assert_eq!(recognised(&paths[1..]).unwrap(), "pickscore", "{name}");
        // In a folder it is not looked at.
        assert!(recognised(&[folder.path().to_path_buf()]).is_err(), "{name}");
    }
}

#[test]
fn the_aesthetic_predictor_needs_no_tokenizer() {
    let (folder, all) = (tempfile::tempdir().unwrap(), cases());
    let mut case = all.into_iter().find(|case| case.judge == "aesthetic").unwrap();
    let words = serde_json::json!(100);
    case.files["config.json"]["text_config"]["vocab_size"] = words.clone();
    case.files["model.safetensors"]["text_model.embeddings.token_embedding.weight"][0] = words;
    write(&case, folder.path());
    let paths = [folder.path().to_path_buf()];
    let judge = load("aesthetic", &paths, &JudgeOptions::default()).unwrap();
    assert!(relative_error(&scores(&case, judge.as_ref()), &case.scores) < 1e-4);
    let text = load("pickscore", &paths, &JudgeOptions::default()).err().unwrap().to_string();
    assert!(text.contains("tokenizer") && text.contains("100 tokens"), "{text}");
}
