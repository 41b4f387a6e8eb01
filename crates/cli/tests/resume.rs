//! A training run killed at any moment continues to the same adapter, bit for bit, on a CPU.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::Room;
use seedpo_evaluate::png::write_png;
use seedpo_tensor::{Device, Kind, NoiseKey, Tensor};

/// Kills to land in all, over all methods; scripts/kill_test.sh asks for more.
fn kills_wanted() -> usize {
    std::env::var("SEEDPO_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

const PROMPTS: &str = "prompts = [\"a\", \"b\", \"c\"]\n";
const COMMON: &str = r#"
model = "model"
judge = "colourfulness"
steps = 3
divert_start_step = 1
candidates = 2
threshold = 0.0
guidance_scale = 2.0
prompts_per_iteration = 2
learning_rate = 1e-2
max_train_steps = 9
checkpointing_steps = 2
validation_steps = 4
validation_images_per_prompt = 2
device = "cpu"
dtype = "f32"
"#;
/// Updates fall within iterations, so that checkpoints do too.
const SPO: &str = "method = \"spo\"\nbeta = 10.0\ntrain_batch_size = 2\nentropy = { gamma = 1.0 }\n";
/// Keeps rewards from iteration to iteration.
const DDPO: &str = "method = \"ddpo\"\nclip = 0.1\ntrain_batch_size = 1\nreward_history = 3\nreward_history_min = 2\n";
const D3PO: &str = "method = \"d3po\"\nbeta = 0.1\ntrain_batch_size = 1\n";
/// Its references are drawn from snapshots, which checkpoints hold.
const SEPPO: &str =
    "method = \"seppo\"\npairs_file = \"pairs.jsonl\"\nbeta = 100.0\ntrain_batch_size = 1\nreference_save_steps = 2\n";

fn room(method: &str) -> Room {
    let room = Room::new();
    let files = method == SEPPO;
    if files {
        for (name, red) in [("a", 200), ("b", 90), ("c", 20)] {
            let picture = Tensor::full([16, 16, 3], red, (Kind::Uint8, Device::Cpu));
            write_png(&room.path(&format!("{name}.png")), &picture, &[]).unwrap();
        }
        let line =
            |name: &str| format!("{{\"prompt\": \"{name}\", \"winner\": \"{name}.png\", \"loser\": \"a.png\"}}\n");
        room.write("pairs.jsonl", ["a", "b", "c"].map(line).concat());
    }
    let prompts = if files { "" } else { PROMPTS };
    room.write("run.toml", format!("{prompts}{COMMON}{method}"));
    room
}

fn spawn(room: &Room, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_seedpo"))
        .current_dir(room.path(""))
        .env("OMP_NUM_THREADS", "1")
        .args(["train", "--quiet"])
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(fs::File::create(room.path("stderr.txt")).unwrap())
        .spawn()
        .unwrap()
}

/// Starts the run called `name`, or goes on with it where its folder exists.
fn start(room: &Room, name: &str) -> Child {
    let folder = format!("runs/{name}");
    match room.path(&folder).exists() {
        true => spawn(room, &["--resume", &folder]),
        false => spawn(room, &["--config", "run.toml", "--name", name]),
    }
}

fn finish(room: &Room, mut child: Child) -> ExitStatus {
    let status = child.wait().unwrap();
    let said = fs::read_to_string(room.path("stderr.txt")).unwrap();
    assert!(status.code() == Some(0) || status.code() == Some(130), "{status}: {said}");
    status
}

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("pytorch_lora_weights.safetensors")).unwrap()
}

/// Steps of the update lines; each must be there once, whatever was killed.
fn recorded_steps(run: &Path) -> Vec<u64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["kind"] == "update").map(|line| line["step"].as_u64().unwrap()).collect()
}

/// Everything that must not depend on kills: adapters, optimizer, positions, pictures.
fn assert_same(whole: &Path, resumed: &Path) {
    assert!(adapter(whole) == adapter(resumed), "the final adapters differ");
    for name in ["optimizer.safetensors", "position.json", "pytorch_lora_weights.safetensors"] {
        let of = |run: &Path| fs::read(run.join("checkpoint-9").join(name)).unwrap();
        assert!(of(whole) == of(resumed), "{name} of the last checkpoint differs");
    }
    let history = |run: &Path| {
        let folder = run.join("checkpoint-9/reference_history");
        let files = fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().path());
        files.map(|path| (path.file_name().unwrap().to_owned(), fs::read(path).unwrap())).collect::<BTreeMap<_, _>>()
    };
    assert!(history(whole) == history(resumed), "the reference's snapshots differ");
    assert_eq!(recorded_steps(resumed), (1..=9).collect::<Vec<u64>>());
    let listing = |run: &Path| {
        let mut names: Vec<PathBuf> = fs::read_dir(run).unwrap().map(|e| e.unwrap().file_name().into()).collect();
        names.retain(|name| !name.to_string_lossy().starts_with("events"));
        names.sort();
        names
    };
    assert_eq!(listing(whole), listing(resumed), "files of the run folder");
    let grid = |run: &Path| fs::read(run.join("samples/step-000009.png")).unwrap();
    assert!(grid(whole) == grid(resumed), "the last previews differ");
}

#[test]
fn runs_killed_at_random_moments_end_with_the_same_adapter() {
    let rooms = [room(SPO), room(D3PO), room(SEPPO)];
    let whole_seconds = rooms.each_ref().map(|room| {
        let begun = Instant::now();
        assert!(finish(room, start(room, "whole")).success());
        begun.elapsed().as_secs_f64()
    });
    let wanted = kills_wanted();
    let (mut kills, mut launches, mut before_folder) = (0, 0, 0);
    for trial in 0.. {
        let (room, seconds) = (&rooms[trial % 3], whole_seconds[trial % 3]);
        let name = format!("killed-{trial}");
        loop {
            let key = NoiseKey::new(7, "kill-moment").step(launches);
            launches += 1;
            let mut child = start(room, &name);
            if kills < wanted {
                std::thread::sleep(Duration::from_secs_f64(seconds * key.uniform()));
                if child.try_wait().unwrap().is_none() {
                    child.kill().unwrap();
                    child.wait().unwrap();
                    kills += 1;
                    before_folder += usize::from(!room.path(&format!("runs/{name}")).exists());
                    continue;
                }
            }
            assert!(finish(room, child).success());
            break;
        }
        assert_same(&room.path("runs/whole"), &room.path(&format!("runs/{name}")));
        if kills >= wanted {
            break;
        }
    }
    assert!(before_folder <= wanted / 2, "{before_folder} of {wanted} kills came before the run had begun");
    println!("{kills} kills in {launches} launches, {before_folder} before the run folder existed");
}

/// Every update writes a checkpoint, an average and best.json; the kill comes while one is half-written.
#[test]
fn runs_killed_while_they_write_checkpoints_end_with_the_same_adapter() {
    let room = Room::new();
    let often =
        "checkpointing_steps = 1\noptimizer = \"adafactor\"\nema_decay = 0.9\ncheckpoint_metric = \"accuracy\"\n";
    let settings = COMMON.replace("checkpointing_steps = 2\n", often);
    room.write("run.toml", format!("{PROMPTS}{settings}guard = \"roll-back\"\n{DDPO}"));
    assert!(finish(&room, start(&room, "whole")).success());
    let half_written = |run: &Path| {
        let names = fs::read_dir(run).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.into_iter().any(|name| name.to_string_lossy().starts_with(".checkpoint-"))
    };
    let run = room.path("runs/killed");
    let (wanted, mut within) = (kills_wanted() / 4, 0);
    for kill in 0..200 {
        let mut child = start(&room, "killed");
        if within < wanted {
            // Each time a little later within the writing.
            while child.try_wait().unwrap().is_none() && !half_written(&run) {}
            std::thread::sleep(Duration::from_micros(300 * kill));
            let _ = child.kill();
            child.wait().unwrap();
            within += usize::from(half_written(&run));
            continue;
        }
        assert!(finish(&room, child).success());
        break;
    }
    assert!(within >= wanted, "{within} of {wanted} kills fell within the writing of a checkpoint");
    assert_same(&room.path("runs/whole"), &run);
    let average = |run: &Path| fs::read(run.join("pytorch_lora_weights_ema.safetensors")).unwrap();
    assert!(average(&room.path("runs/whole")) == average(&run));
}

#[test]
fn sigterm_saves_and_exits_130_and_the_run_goes_on() {
    let room = room(SPO);
    assert!(finish(&room, start(&room, "whole")).success());
    let child = start(&room, "stopped");
    let metrics = room.path("runs/stopped/metrics.jsonl");
    let begun = Instant::now();
    let updated = || fs::read_to_string(&metrics).is_ok_and(|text| text.contains("\"update\""));
    while !updated() {
        assert!(begun.elapsed().as_secs() < 60, "no update within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let status = finish(&room, child);
    let run = room.path("runs/stopped");
    let last = *recorded_steps(&run).last().unwrap();
    if last < 9 {
        assert_eq!(status.code(), Some(130));
        assert!(run.join(format!("checkpoint-{last}")).is_dir(), "saved after update {last}");
    }
    assert!(finish(&room, start(&room, "stopped")).success());
    assert!(adapter(&run) == adapter(&room.path("runs/whole")));
}

#[test]
fn a_kill_between_the_last_checkpoint_and_the_adapter_at_the_top_is_made_good() {
    let room = room(D3PO);
    assert!(finish(&room, start(&room, "run")).success());
    let run = room.path("runs/run");
    let last = adapter(&run);
    fs::copy(
        run.join("checkpoint-8").join("pytorch_lora_weights.safetensors"),
        run.join("pytorch_lora_weights.safetensors"),
    )
    .unwrap();
    assert!(adapter(&run) != last);
    assert!(finish(&room, start(&room, "run")).success());
    assert!(adapter(&run) == last);
}

#[test]
fn a_longer_run_equals_one_that_was_long_from_the_start() {
    let room = room(D3PO);
    assert!(finish(&room, start(&room, "whole")).success());
    // Update 5 lies within an iteration of two pairs.
    assert!(
        finish(&room, spawn(&room, &["--config", "run.toml", "--name", "short", "--max-train-steps", "5"])).success()
    );
    assert!(finish(&room, spawn(&room, &["--resume", "runs/short", "--max-train-steps", "9"])).success());
    assert!(adapter(&room.path("runs/short")) == adapter(&room.path("runs/whole")));
}

#[test]
fn other_settings_or_inputs_are_refused_and_nothing_changes() {
    let room = room(D3PO);
    assert!(
        finish(&room, spawn(&room, &["--config", "run.toml", "--name", "run", "--max-train-steps", "2"])).success()
    );
    let before = room.listing();
    let refused = |arguments: &[&str], needles: &[&str]| {
        let status = spawn(&room, arguments).wait().unwrap();
        let said = fs::read_to_string(room.path("stderr.txt")).unwrap();
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(needles.iter().all(|needle| said.contains(needle)), "{said}");
    };
    refused(&["--resume", "runs/run", "--beta", "3", "--gamma", "1"], &["runs/run", "beta", "entropy.gamma", "3"]);
    refused(&["--resume", "runs/run", "--max-train-steps", "1"], &["max_train_steps"]);
    refused(&["--resume", "runs/none"], &["runs/none", "config.toml"]);
    room.edit("model/unet/config.json", |text| format!("{text}\n"));
    refused(&["--resume", "runs/run", "--max-train-steps", "4"], &["unet/config.json", "SHA-256"]);
    let mut after = room.listing();
    after.retain(|path, _| {
        before.contains_key(path) && !path.ends_with("stderr.txt") && !path.ends_with("unet/config.json")
    });
    assert!(after.iter().all(|(path, size)| before[path] == *size));
    assert_eq!(room.listing().len(), before.len());
}

/// A limit on file sizes stands in for a full disk: both fail in the middle of a write.
#[test]
fn no_space_leaves_the_last_checkpoint_and_no_half_one() {
    let room = room(D3PO);
    assert!(
        finish(&room, spawn(&room, &["--config", "run.toml", "--name", "run", "--max-train-steps", "2"])).success()
    );
    let run = room.path("runs/run");
    let before = adapter(&run);
    let optimizer = fs::metadata(run.join("checkpoint-2/optimizer.safetensors")).unwrap().len();
    // The shell counts blocks of 512 bytes; ignoring the signal makes the write fail instead.
    let limit = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", optimizer / 512 - 1);
    let output = Command::new("sh")
        .args(["-c", &limit, env!("CARGO_BIN_EXE_seedpo"), "train", "--quiet", "--resume", "runs/run"])
        .args(["--max-train-steps", "9"])
        .current_dir(room.path(""))
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no space left") && said.contains("checkpoint-2"), "{said}");
    let names: Vec<_> = fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.contains("tmp") || name == "checkpoint-4"), "{names:?}");
    assert!(adapter(&run) == before);
    assert!(finish(&room, start(&room, "run")).success());
}
