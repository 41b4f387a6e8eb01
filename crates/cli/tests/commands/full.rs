//! Full fine-tuning from the command line.

use super::*;

/// Trains two updates, stops being told apart from a longer run by nothing, and the result draws other pictures.
#[test]
fn a_whole_unet_is_trained_sampled_and_put_into_a_model() {
    let room = Room::new();
    let settings = "finetuning_type = 'full'\nmethod = 'ddpo'\njudge = 'colourfulness'\nprompts = ['a', 'b']\nsteps = 3\n\
                    prompts_per_iteration = 2\ntrain_batch_size = 1\nlearning_rate = 1e-3\nvalidation_steps = 0\n\
                    ema_decay = 0.5\n";
    room.write("full.toml", settings);
    let train = |extra: &[&str]| {
        let base = ["train", "--config", "full.toml", "--model", "model", "--device", "cpu", "--dtype", "f32"];
        done(&room, &[&base[..], extra].concat());
    };
    train(&["--name", "whole", "--max-train-steps", "3"]);
    // On from within an iteration, where the samples are drawn again.
    train(&["--name", "part", "--max-train-steps", "1"]);
    done(&room, &["train", "--resume", "runs/part", "--max-train-steps", "3"]);
    let file =
        |run: &str| std::fs::read(room.path(&format!("runs/{run}/diffusion_pytorch_model.safetensors"))).unwrap();
    assert!(file("whole/unet") == file("part/unet") && file("whole/unet_ema") == file("part/unet_ema"));
    assert_ne!(file("whole/unet"), file("whole/unet_ema"));
    let draw = |out: &str, extra: &[&str]| {
        let base = ["sample", "--prompt", "a", "--steps", "2", "--device", "cpu", "--dtype", "f32", "--out", out];
        done(&room, &[&base[..], extra].concat());
        std::fs::read_dir(room.path(out)).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap()).collect()
    };
    let pixels = |files: Vec<Vec<u8>>| image::load_from_memory(&files[0]).unwrap().to_rgb8().into_raw();
    done(&room, &["adapter", "merge", "--model", "model", "runs/whole", "merged"]);
    let [base, unet, checkpoint, merged] = [
        draw("base", &["--model", "model"]),
        draw("unet", &["--model", "model", "--unet", "runs/whole"]),
        draw("checkpoint", &["--model", "model", "--unet", "runs/whole/checkpoint-3/unet"]),
        draw("merged-out", &["--model", "merged"]),
    ]
    .map(pixels);
    assert_ne!(unet, base);
    assert!(unet == checkpoint && unet == merged);
    let refused = |arguments: &[&str]| {
        let output = room.seedpo(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(&["sample", "--prompt", "a", "--model", "model", "--adapter", "runs/whole", "--out", "no"]);
    assert!(said.contains("--unet runs/whole"), "{said}");
    let said = refused(&["adapter", "merge", "runs/whole", "no"]);
    assert!(said.contains("expected --model"), "{said}");
    for arguments in
        [&["adapter", "inspect", "runs/whole"][..], &["adapter", "convert", "runs/whole", "no", "--to", "kohya"]]
    {
        let said = refused(arguments);
        assert!(said.contains("holds a whole U-Net") && said.contains("--unet runs/whole"), "{said}");
    }
    assert!(!room.path("no").exists());
    done(&room, &["report", "runs/whole"]);
    let page = std::fs::read_to_string(room.path("runs/whole/report.html")).unwrap();
    assert!(page.contains("UNet2DConditionModel.from_pretrained"), "the report says how to use it");
}
