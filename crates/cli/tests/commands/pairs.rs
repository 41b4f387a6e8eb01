//! `seedpo pairs`, and training from what it writes.

use super::*;

/// Three pairs of pictures as JSON lines: flat ones lose, the third picture cannot be decoded.
fn dataset(room: &Room) {
    let picture = |name: &str, level: u8| {
        let pixels = image::RgbImage::from_fn(24, 16, |x, y| image::Rgb([(x * 10) as u8, (y * 15) as u8, level]));
        pixels.save(room.path(name)).unwrap();
    };
    let mut lines = String::new();
    for i in 0..3 {
        picture(&format!("a{i}.png"), 250);
        image::RgbImage::from_pixel(24, 16, image::Rgb([90, 90, 90])).save(room.path(&format!("b{i}.png"))).unwrap();
        lines += &format!("{{\"prompt\": \"p{}\", \"winner\": \"b{i}.png\", \"loser\": \"a{i}.png\"}}\n", i % 2);
    }
    room.write("pairs.jsonl", lines);
}

#[test]
fn pairs_are_inspected_converted_and_judged_anew() {
    let room = Room::new();
    dataset(&room);
    let shown = done(&room, &["pairs", "inspect", "pairs.jsonl", "--rows", "1"]);
    for part in ["rows      3", "pairs     3", "prompts   2 (1.5 pairs each, at most 2)", "24x16 (3)", "line 1: \"p0\""]
    {
        assert!(shown.contains(part), "{part:?} not in\n{shown}");
    }
    // The judge turns all of them round: the flat pictures had won.
    done(&room, &["pairs", "relabel", "pairs.jsonl", "judged.jsonl", "--judge", "colourfulness"]);
    let judged = std::fs::read_to_string(room.path("judged.jsonl")).unwrap();
    assert_eq!(judged.matches("\"winner\":\"a").count(), 3, "{judged}");
    assert!(judged.contains("winner_and_loser_scores"));
    // A rule that compares sees both sides of a pair, of whatever sizes they are.
    image::RgbImage::from_pixel(20, 16, image::Rgb([90, 90, 90])).save(room.path("b1.png")).unwrap();
    let rule = "majority(colourfulness, chroma)";
    done(&room, &["pairs", "relabel", "pairs.jsonl", "compared.jsonl", "--judge", rule]);
    let compared = std::fs::read_to_string(room.path("compared.jsonl")).unwrap();
    assert_eq!(compared.matches("\"winner\":\"a").count(), 3, "{compared}");
    // Two judges that never agree: nothing is left to train on.
    done(&room, &["pairs", "relabel", "pairs.jsonl", "none.jsonl", "--judge", "colourfulness,jpeg-compressibility"]);
    assert_eq!(std::fs::read_to_string(room.path("none.jsonl")).unwrap(), "");
    done(&room, &["pairs", "convert", "judged.jsonl", "judged.parquet"]);
    let shown = done(&room, &["pairs", "inspect", "judged.parquet", "--decode"]);
    assert!(shown.contains("parquet") && shown.contains("pairs     3"), "{shown}");
    // From either file the same adapter.
    let train = |file: &str, name: &str| {
        let mut arguments = vec!["train", "--model", "model", "--device", "cpu", "--method", "diffusion-dpo"];
        arguments.extend(["--pairs-file", file, "--name", name, "--beta", "100", "--guidance-scale", "1"]);
        arguments.extend(["--max-train-steps", "2", "--train-batch-size", "2", "--validation-steps", "0", "--clip=0"]);
        done(&room, &arguments);
        std::fs::read(room.path(&format!("runs/{name}/pytorch_lora_weights.safetensors"))).unwrap()
    };
    assert!(train("judged.jsonl", "lines") == train("judged.parquet", "parquet"));
}

#[test]
fn bad_pairs_are_named_and_stop_above_the_limit() {
    let room = Room::new();
    dataset(&room);
    room.write("a1.png", "no picture");
    let output = room.seedpo(&["pairs", "inspect", "pairs.jsonl", "--decode"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("pairs.jsonl line 2") && shown.contains("a1.png"), "{shown}");
    let refused = |arguments: &[&str]| {
        let output = room.seedpo(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(&["pairs", "relabel", "pairs.jsonl", "out.parquet", "--judge", "colourfulness"]);
    assert!(said.contains("1 of 3 rows are bad") && said.contains("a1.png"), "{said}");
    assert!(!room.path("out.parquet").exists());
    let lenient =
        ["pairs", "relabel", "pairs.jsonl", "out.jsonl", "--judge", "colourfulness", "--bad-rows-limit", "0.5"];
    done(&room, &lenient);
    assert_eq!(std::fs::read_to_string(room.path("out.jsonl")).unwrap().lines().count(), 2);
    std::fs::remove_file(room.path("a2.png")).unwrap();
    let said = refused(&[
        "train",
        "--model",
        "model",
        "--method",
        "diffusion-dpo",
        "--pairs-file",
        "pairs.jsonl",
        "--max-train-steps",
        "1",
    ]);
    assert!(said.contains("pairs_file") && said.contains("line 3") && said.contains("a2.png"), "{said}");
    assert!(!room.path("runs").exists());
}

/// One command makes a store or pairs of pictures, and one trains on them.
#[test]
fn rollouts_are_stored_and_trained_on() {
    let room = Room::new();
    let sampling = ["--model", "model", "--device", "cpu", "--judge", "colourfulness", "--steps", "3"];
    let run =
        |first: &[&str], rest: &[&str]| done(&room, &[first, &sampling[..], &["--guidance-scale", "2"], rest].concat());
    run(&["rollout", "--method", "d3po", "--store", "store"], &["--prompt", "a", "--prompt", "b"]);
    assert!(room.path("store/store.json").is_file() && !room.path("runs").exists());
    let short = ["--max-train-steps", "1", "--validation-steps", "0", "--train-batch-size", "1"];
    run(&["train", "--method", "d3po", "--pairs-file", "store", "--name", "offline"], &short);
    assert!(room.path("runs/offline/pytorch_lora_weights.safetensors").is_file());
    run(&["rollout", "--method", "d3po", "--images", "drawn"], &["--prompt", "a", "--num-train-epochs", "2"]);
    let shown = done(&room, &["pairs", "inspect", "drawn", "--decode"]);
    assert!(shown.contains("pairs     2") && shown.contains(&format!("{SIDE}x{SIDE} (2)")), "{shown}");
    run(&["train", "--method", "sft", "--pairs-file", "drawn", "--name", "sft"], &short);
    // A dataset where a store is needed, and the reverse.
    let refused = |method: &str, file: &str| {
        let output = room
            .seedpo(&["train", "--model", "model", "--method", method, "--pairs-file", file, "--max-train-steps", "1"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused("d3po", "drawn");
    assert!(said.contains("seedpo rollout") && said.contains("store.json"), "{said}");
    let said = refused("diffusion-dpo", "store");
    assert!(said.contains("expected a list of pairs") && said.contains("store.json"), "{said}");
}
