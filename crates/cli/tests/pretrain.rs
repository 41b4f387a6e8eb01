//! `seedpo pretrain` from the outside: one step of each stage on six emoji, the measure, and bad input.

use std::path::{Path, PathBuf};

use assert_cmd::Command;

fn emoji() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../pretrain/tests/fixtures/emoji")
}

/// Runs `seedpo pretrain` in `folder`; returns exit code, standard output and standard error.
fn pretrain(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("seedpo").unwrap();
    let output =
        command.current_dir(folder).env("OMP_NUM_THREADS", "1").arg("pretrain").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn a_short_run_makes_a_model_that_can_be_measured() {
    let folder = tempfile::tempdir().unwrap();
    let data = emoji();
    let data = data.to_str().unwrap();
    let short =
        ["--data", data, "--out", "run", "--vae-steps", "1", "--vae-batch", "2", "--steps", "1", "--batch", "2"];
    let (code, out, err) = pretrain(folder.path(), &[&short[..], &["--preview-every", "0"]].concat());
    assert_eq!((code, out.trim()), (0, "run/model"), "{err}");
    assert!(folder.path().join("run/model/README.md").is_file());
    let (code, _, err) = pretrain(folder.path(), &short);
    assert!(code == 2 && err.contains("continue it with --resume"), "{code} {err}");

    let measure = ["measure", "--model", "run/model", "--data", data, "--names", "2", "--steps", "2"];
    let (code, out, err) = pretrain(folder.path(), &[&measure[..], &["--json", "names.json"]].concat());
    assert!(code == 0 && out.contains("name or its subcategory") && out.contains("names: 2"), "{code} {out} {err}");
    assert!(folder.path().join("emoji-grid.png").is_file() && folder.path().join("names.json").is_file());
    let (code, ..) = pretrain(folder.path(), &[&measure[..], &["--at-least", "1.1"]].concat());
    assert_eq!(code, 1, "a missed gate");
}

#[test]
fn bad_input_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = emoji();
    let data = data.to_str().unwrap();
    for (arguments, expected) in [
        (vec!["--data", "nowhere"], "nowhere: no emoji.json in this folder; `make emoji` fetches"),
        (vec!["--data", data, "--batch", "0"], "`batch`: expected 1 or more, found 0"),
        (vec!["--data", data, "--lr", "2"], "`lr`: expected a number above 0 and below 1, found 2"),
        (vec!["--data", data, "--dtype", "f16"], "expected bf16 or f32"),
        (vec!["measure", "--names", "0"], "--names: expected 1 or more"),
        (vec!["measure", "--model", "nowhere"], "nowhere"),
    ] {
        let (code, _, err) = pretrain(folder.path(), &arguments);
        assert!(code == 2 && err.contains(expected), "{arguments:?}: {code} {err}");
    }
}
