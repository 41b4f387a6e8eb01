//! Judges with weights, of one's own and several as one, through every command that takes them.

use super::*;
use seedpo_judge::{JudgeOptions, load};
use seedpo_model::{ClipConfig, ClipModel};
use seedpo_tensor::{Device, Params, write_weights};

/// A tiny PickScore folder, or a step-aware one.
fn judge_folder(room: &Room, name: &str, step_aware: bool) {
    let text = r#""text_config": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}"#;
    let vision = r#""vision_config": {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4}"#;
    room.write(&format!("{name}/config.json"), format!("{{\"projection_dim\": 8, {text}, {vision}}}"));
    let config = ClipConfig::from_file(&room.path(name).join("config.json")).unwrap();
    let clip = ClipModel::new(config.clone(), Params::init(4, Device::Cpu)).unwrap();
    let mut tensors: BTreeMap<_, _> = clip.parameters().iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
    if step_aware {
        tensors.extend(ClipModel::fresh_time_conditioning(&config, 1).unwrap());
        let last = "vision_model.adaLN_modulation.1.weight";
        tensors.insert(last.into(), tensors[last].ones_like() * 0.1);
    }
    write_weights(&room.path(name).join("model.safetensors"), &tensors, &BTreeMap::new()).unwrap();
}

fn pictures(rows: i64) -> Tensor {
    (noise(&[rows, 9, 12, 3]) * 60 + 128).clamp(0.0, 255.0).to_kind(Kind::Uint8)
}

fn probed(room: &Room, settings: &str, images: &Tensor) -> Vec<f64> {
    room.case("case.safetensors", "score", settings, &[("images", images.shallow_clone())]);
    done(room, &["probe", "--model", "model", "--case", "case.safetensors", "--out", "out.safetensors"]);
    let scores = WeightFile::open(&room.path("out.safetensors")).unwrap().tensor("scores").unwrap();
    Vec::<f64>::try_from(scores.to_kind(Kind::Double)).unwrap()
}

fn near(found: &[f64], expected: &[f64]) {
    assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-5 * e.abs().max(1.0)), "{found:?} {expected:?}");
}

#[test]
fn probe_scores_with_a_folder_or_a_file_and_at_a_timestep() {
    let room = Room::new();
    judge_folder(&room, "pick", false);
    judge_folder(&room, "spm", true);
    let (images, prompts) = (pictures(2), ["a red apple", "two cats"]);
    let direct = |name: &str, folder: &str| load(name, &[room.path(folder)], &JudgeOptions::default()).unwrap();
    let expected = direct("pickscore", "pick").score(&images, &prompts).unwrap();
    assert_ne!(expected[0], expected[1]);
    for path in ["pick", "pick/model.safetensors"] {
        let settings =
            format!(r#"{{"judge": "PickScore", "judge_path": "{path}", "prompts": ["a red apple", "two cats"]}}"#);
        near(&probed(&room, &settings, &images), &expected);
    }
    let settings =
        r#"{"judge": "step-aware", "judge_path": "spm", "prompts": ["a red apple", "two cats"], "timestep": 501}"#;
    let floats = images.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0;
    let spm = direct("spm", "spm");
    near(&probed(&room, settings, &images), &spm.score_step(&floats, 501, &prompts).unwrap());
    assert_ne!(spm.score_step(&floats, 501, &prompts).unwrap(), spm.score(&images, &prompts).unwrap());
}

#[test]
fn score_takes_several_judges_of_every_kind_and_pictures_of_any_size() {
    let room = Room::new();
    judge_folder(&room, "pick", false);
    room.write(
        "scorer.sh",
        "while read -r job; do n=$(echo \"$job\" | grep -o '.png' | wc -l); printf '{\"scores\": ['; \
        i=1; while [ $i -lt $n ]; do printf '%s, ' $i; i=$((i+1)); done; echo \"$n]}\"; done",
    );
    for (name, height) in [("a", 8), ("b", 8), ("c", 5)] {
        let path = room.write(&format!("pictures/{name}.png"), "").path(&format!("pictures/{name}.png"));
        let picture = pictures(1).squeeze_dim(0).narrow(0, 0, height).contiguous();
        seedpo_evaluate::png::write_png(&path, &picture, &[("prompt", "a red apple")]).unwrap();
    }
    let judges = "pickscore=pick,exec:sh scorer.sh,worst(colourfulness, exec:sh scorer.sh),path:pick";
    done(&room, &["score", "--judge", judges, "pictures", "--csv", "s.csv"]);
    let text = std::fs::read_to_string(room.path("s.csv")).unwrap();
    let header =
        "image,prompt,pickscore=pick,exec:sh scorer.sh,\"worst(colourfulness, exec:sh scorer.sh)\",path:pick\n";
    assert!(text.starts_with(header), "{text}");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(lines.len(), 4, "{text}");
    // Two of one size go together, the third alone.
    assert_eq!([lines[1][3], lines[2][3], lines[3][3]], ["1", "2", "1"], "{text}");
    assert!(lines[1..].iter().all(|row| row[2] == row[row.len() - 1]), "{text}");
}

#[test]
fn the_list_names_every_judge_and_where_it_lies() {
    let room = Room::new();
    let text = done(&room, &["judge", "list"]);
    for info in seedpo_judge::names() {
        assert!(
            text.contains(info.name) && info.weights.iter().all(|w| text.contains(w.repo)),
            "{}: {text}",
            info.name
        );
    }
    let lines = done(&room, &["judge", "list", "--json"]);
    assert_eq!(lines.lines().count(), seedpo_judge::names().len());
    assert!(lines.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
}

#[test]
fn training_takes_a_judge_of_ones_own_and_an_ensemble() {
    let room = Room::new();
    judge_folder(&room, "spm", true);
    room.write("run.toml", "judge = { pareto = [\"colourfulness\", \"jpeg-compressibility\"] }\nheldout_judge = { name = \"spm\", path = \"spm\" }");
    let without_judge: Vec<&str> =
        TRAIN.iter().copied().filter(|a| !["--judge", "colourfulness"].contains(a)).collect();
    done(&room, &[&without_judge[..], &["--config", "run.toml", "--name", "several"]].concat());
    let config = std::fs::read_to_string(room.path("runs/several/config.toml")).unwrap();
    assert!(config.contains("judge = \"pareto(colourfulness, jpeg-compressibility)\""), "{config}");
    done(&room, &[&without_judge[..], &["--judge", "spm=spm", "--judge-dtype", "bf16", "--name", "steps"]].concat());
}
