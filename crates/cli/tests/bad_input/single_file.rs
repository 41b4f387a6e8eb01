//! Single-file checkpoints that cannot be used.

use super::*;

#[test]
fn a_file_that_is_no_checkpoint() {
    let room = Room::new();
    room.write("model.ckpt", "x").write("notes.txt", "x");
    refuses(&room, &["sample", "--model", "model.ckpt", "--prompt", "a"], &["model.ckpt", "found 1 bytes"]);
    refuses(&room, &["sample", "--model", "notes.txt", "--prompt", "a"], &["notes.txt", ".safetensors, .ckpt"]);
    let weights = ["sample", "--model", UNET, "--prompt", "a"];
    refuses(
        &room,
        &weights,
        &["diffusion_pytorch_model.safetensors", "one network in diffusers' names", "config.json"],
    );
    let variant = ["sample", "--model", UNET, "--variant", "fp16", "--prompt", "a"];
    refuses(&room, &variant, &["fp16", "no variants"]);
}

#[test]
fn a_prediction_type_and_a_variant_that_do_not_exist() {
    let room = Room::new();
    let all = |extra: [&'static str; 2]| [SAMPLE.to_vec(), extra.to_vec()].concat();
    refuses(&room, &all(["--prediction-type", "flow"]), &["epsilon, v_prediction or sample", "`flow`"]);
    refuses(&room, &all(["--variant", "fp8"]), &["variant", "fp8"]);
    refuses(&room, &all(["--tokenizer", "nowhere"]), &["nowhere"]);
}
