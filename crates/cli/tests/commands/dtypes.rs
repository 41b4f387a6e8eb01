//! Which dtype a command computes in.

use super::TRAIN;
use crate::common::Room;
use serde_json::json;

/// What the machine's speeds are said to be.
fn pretend(room: &Room, f32: f64, bf16: f64) {
    let file = room.path(".cache/seedpo/speed.json");
    if !file.exists() {
        // Measured once, so that the file has this machine's key.
        assert!(sample(room, "warm-up").contains("on this machine"));
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let mut speeds: serde_json::Value = serde_json::from_str(&text).unwrap();
    speeds.as_object_mut().unwrap().values_mut().for_each(|v| *v = json!({"f32": f32, "bf16": bf16, "f16": 0.0}));
    std::fs::write(file, speeds.to_string()).unwrap();
}

/// What `seedpo sample` says on standard error.
fn sample(room: &Room, out: &str) -> String {
    let arguments = ["sample", "--model", "model", "--device", "cpu", "--prompt", "a", "--steps", "2", "--out", out];
    said(room, &arguments)
}

fn said(room: &Room, arguments: &[&str]) -> String {
    let done = room.seedpo_as_given(arguments).assert().success();
    String::from_utf8_lossy(&done.get_output().stderr).into_owned()
}

#[test]
fn auto_takes_the_faster_type_and_a_run_records_and_keeps_it() {
    let room = Room::new();
    pretend(&room, 100.0, 300.0);
    let text = sample(&room, "fast");
    assert!(text.contains("dtype bf16: 3.0 times as fast as f32"), "{text}");
    assert!(said(&room, &TRAIN).contains("dtype bf16"));
    let config = || std::fs::read_to_string(room.path("runs/spo/config.toml")).unwrap();
    assert!(config().contains("\ndtype = \"bf16\"") && config().contains("\nvae_dtype = \"bf16\""), "{}", config());
    // On a machine that would choose otherwise the run goes on as it began.
    pretend(&room, 100.0, 90.0);
    assert!(sample(&room, "slow").contains("dtype f32: bf16 is only 0.9 times"));
    let text = said(&room, &["train", "--resume", "latest", "--dtype", "auto", "--max-train-steps", "2"]);
    assert!(text.contains("BFloat16") && !text.contains("f32:"), "{text}");
}

#[test]
fn an_autoencoder_that_overflows_in_f16_runs_in_f32_and_that_is_said() {
    let room = Room::new();
    let base = ["sample", "--model", "model", "--device", "cpu", "--prompt", "a", "--steps", "2", "--dtype"];
    let draw = |more: &[&str]| said(&room, &[&base[..], more].concat());
    let warning = "WARN the autoencoder runs in f32, not f16: its configuration does not say `force_upcast: false`";
    for (number, flags) in
        [&["f16"][..], &["f16", "--vae-dtype", "f16"], &["bf16", "--vae-dtype", "f16"]].iter().enumerate()
    {
        let text = draw(&[flags, &["--out", &number.to_string()][..]].concat());
        assert_eq!(text.matches(warning).count(), 1, "{flags:?}: {text}");
    }
    for (number, flags) in [&["f16", "--vae-dtype", "f32"][..], &["bf16"]].iter().enumerate() {
        let text = draw(&[flags, &["--out", &format!("other-{number}")][..]].concat());
        assert!(!text.contains("autoencoder"), "{flags:?}: {text}");
    }
    assert!(!draw(&["f16", "--out", "quiet", "--quiet"]).contains("autoencoder"));
}

#[test]
fn a_fixed_autoencoder_is_used_in_f16_as_it_is() {
    let room = Room::new();
    room.edit("model/vae/config.json", |text| text.replace("\"force_upcast\": true", "\"force_upcast\": false"));
    let text = said(&room, &[&TRAIN[..], &["--dtype", "f16"]].concat());
    assert!(!text.contains("autoencoder"), "{text}");
    let config = std::fs::read_to_string(room.path("runs/spo/config.toml")).unwrap();
    assert!(config.contains("\ndtype = \"f16\"") && config.contains("\nvae_dtype = \"f16\""), "{config}");
}

#[test]
fn an_unknown_dtype_is_refused() {
    let room = Room::new();
    let base = ["sample", "--model", "model", "--device", "cpu", "--prompt", "a", "--steps", "2", "--dtype", "f16"];
    let bad = room.seedpo_as_given(&[&base[..], &["--vae-dtype", "fp8"]].concat()).assert().code(2);
    let text = String::from_utf8_lossy(&bad.get_output().stderr).into_owned();
    assert!(text.contains("--vae-dtype") && text.contains("expected auto, f32, bf16 or f16, found `fp8`"), "{text}");
}
