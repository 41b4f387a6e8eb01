#!/usr/bin/env python3
"""Show with the real diffusers that seedpo reads and writes every layout of models and adapters.

    .venv/bin/python python/interop_formats.py            (or: make interop)

On small random-weight pipelines like Stable Diffusion 1.x, 2.x and XL, made in a temporary folder: the model as `.bin`,
sharded, as fp16 variant and as single file (`.safetensors`, `.ckpt`) gives the same U-Net, text encoder and autoencoder
as the folder; a kohya file written by `seedpo adapter convert` gives diffusers the same picture, one with original block
names and any alpha gives seedpo the same prediction as diffusers; `seedpo adapter merge` writes a folder that equals
base plus adapter; LoRAs of all kinds of layers pass both ways (interop_layers.py). Prints a table of the largest errors and exits 1 if one is above its tolerance.
"""

import argparse
import logging
import re
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils.logging import disable_progress_bar
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar as disable_transformers_bar

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "python/fixtures")]
import interop_common  # noqa: E402
import single_file  # noqa: E402
import tokenizer as odd  # noqa: E402
from interop_common import FORWARD, Inputs, Seedpo, load_pipeline, off, peft_adapter, record  # noqa: E402
from interop_layers import check_layers  # noqa: E402
from original_layout import original, unet_keys  # noqa: E402

FAMILIES = ("sd1", "sd2", "sdxl")
EXACT = 0.0


def make_pipeline(folder, family):
    """A random pipeline whose configuration can be told from its tensors, saved as a folder."""
    parts = single_file.settings(family, small=True)
    torch.manual_seed(len(family))
    tokens = folder / f"{family}-tokens"

    def tokenizer(pad):
        odd.legacy_files(tokens, pad)
        odd.make_vocabulary(tokens)
        return CLIPTokenizer.from_pretrained(str(tokens))

    text = lambda kind, part: kind(CLIPTextConfig(**parts[part] | dict(bos_token_id=0, eos_token_id=2))).eval()
    unet = UNet2DConditionModel(**parts["unet"] | dict(sample_size=8)).eval()
    vae = AutoencoderKL(**parts["vae"] | dict(sample_size=16)).eval()
    schedule = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    scheduler = DDIMScheduler(**schedule, prediction_type="v_prediction" if family == "sd2" else "epsilon")
    if family == "sdxl":
        pipeline = StableDiffusionXLPipeline(vae, text(CLIPTextModel, "text"), text(CLIPTextModelWithProjection, "text_2"), tokenizer(odd.EOS), tokenizer("!"), unet, scheduler, add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(vae, text(CLIPTextModel, "text"), tokenizer("!" if family == "sd2" else odd.EOS), unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.save_pretrained(folder / family)
    return folder / family


class WithFlags(Seedpo):
    """`seedpo` with flags that every command takes."""

    def __init__(self, binary, folder, *flags):
        super().__init__(binary, folder)
        self.flags = flags

    def run(self, *arguments):
        return super().run(*arguments, *self.flags)


def outputs(seedpo, model, x, settings=None):
    """What a model makes of the inputs: U-Net, prompts, picture."""
    ids = x.ids
    latents = x.latents
    return {
        "unet": seedpo.probe(model, "unet", settings, latents=latents, timestep=x.timestep, **x.prompt)["noise_pred"],
        "text": seedpo.probe(model, "text", None, **ids)["prompt_embeds"],
        "decode": next(iter(seedpo.probe(model, "decode", None, latents=latents).values())),
        "tokens": seedpo.probe(model, "tokenize", {"prompts": ["a red fox!", "", "100 cats!!"]})["input_ids"].float(),
    }


def compare(name, label, expected, find, tolerance=EXACT):
    try:
        found = find()
        worst = max(off(found[key], expected[key]) for key in expected)
        record(name, label, worst, tolerance, ", ".join(expected))
    except (RuntimeError, AssertionError, KeyError) as error:
        record(name, label, None, tolerance, str(error).strip().replace("\n", " | ")[:400])


def check_folders(binary, scratch, name, folder, pipeline, x, expected):
    """The same pipeline in diffusers' other folder layouts."""
    base = lambda *flags: WithFlags(binary, scratch, *flags)
    for label, options in [(".bin", dict(safe_serialization=False)), ("shards", dict(max_shard_size="150KB")),
                           (".bin shards", dict(safe_serialization=False, max_shard_size="150KB"))]:
        target = scratch / f"{name}-{label.strip('.').replace(' ', '-')}"
        pipeline.save_pretrained(target, **options)
        compare(name, f"folder: {label}", expected, lambda: outputs(base(), target, x))
    half = scratch / f"{name}-fp16"
    pipeline.save_pretrained(half, variant="fp16", max_shard_size="150KB")
    compare(name, "folder: sharded fp16 variant", expected, lambda: outputs(base("--variant", "fp16"), half, x))
    compare(name, "folder: fp16 variant alone", expected, lambda: outputs(base(), half, x))


def check_single_files(binary, scratch, name, folder, pipeline, x, expected):
    """The original key layout."""
    state = {key: tensor.contiguous() for key, tensor in original(pipeline, name).items()}
    tokens = folder / "tokenizer"
    for ending in ("safetensors", "ckpt"):
        path = scratch / f"{name}.{ending}"
        if ending == "ckpt":
            torch.save({"state_dict": state, "global_step": 12, "pytorch-lightning_version": "1.4.2"}, path)
        else:
            save_file(state, path)
        seedpo = WithFlags(binary, scratch, "--tokenizer", tokens)
        compare(name, f"single file: .{ending}", expected, lambda: outputs(seedpo, path, x))
    drawn = lambda model, *flags: latents_of(WithFlags(binary, scratch, *flags), model, x)
    try:
        record(name, "single file: sampled latents", off(drawn(path, "--tokenizer", tokens), drawn(folder)), EXACT)
    except (RuntimeError, AssertionError, KeyError) as error:
        record(name, "single file: sampled latents", None, EXACT, str(error)[:400])


def latents_of(seedpo, model, x):
    settings = {"steps": 4, "eta": 0.0, "guidance_scale": 5.0}
    found = seedpo.probe(model, "sample", settings, latents=x.latents, **x.both)
    return found["latents"] if "latents" in found else next(iter(found.values()))


def kohya_of(path, unet, block_names):
    """A kohya file as sd-scripts writes it, from a diffusers one: alpha tensors in f16, block names as asked."""
    pairs = {ours.rstrip(".").replace(".", "_"): theirs.rstrip(".").replace(".", "_") for ours, theirs in unet_keys(unet.config)}
    out = {}
    for key, tensor in load_file(path).items():
        module, half = re.fullmatch(r"unet\.(.*)\.lora_([AB])\.weight", key).groups()
        stem = module.replace(".", "_")
        if block_names == "original":
            ours = next(block for block in sorted(pairs, key=len, reverse=True) if stem.startswith(block))
            stem = pairs[ours] + stem.removeprefix(ours)
        out[f"lora_unet_{stem}.lora_{'down' if half == 'A' else 'up'}.weight"] = tensor
        out[f"lora_unet_{stem}.alpha"] = torch.tensor(3.0, dtype=torch.float16)
    written = path.with_name(f"kohya-{block_names}.safetensors")
    save_file(out, written, metadata={"ss_network_dim": "2", "ss_network_alpha": "3.0"})
    return written


def check_network_adapter(seedpo, scratch, name, folder, pipeline, x):
    """What `save_lora_adapter` writes of the U-Net alone: no `unet.` in its keys, nor in its metadata."""
    unet, place = pipeline.unet, scratch / f"{name}-network"
    unet.add_adapter(LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    unet.save_lora_adapter(place)
    with torch.no_grad():
        expected = x.unet(pipeline)(x.latents, x.timestep, x.embeds).sample
    unet.delete_adapters("default")
    settings = {"adapter": str(place / "pytorch_lora_weights.safetensors")}
    out = seedpo.probe(folder, "unet", settings, latents=x.latents, timestep=x.timestep, **x.prompt)
    record(name, "save_lora_adapter's file: noise_pred", off(out["noise_pred"], expected), FORWARD)


def check_adapters(binary, scratch, name, folder, pipeline, x):
    """Adapters to and from kohya's layout, and merged."""
    seedpo = Seedpo(binary, scratch)
    place = scratch / f"{name}-lora"
    path = peft_adapter(pipeline, place, 2, 6, "peft")
    predict = lambda: x.unet(pipeline)(x.latents, x.timestep, x.embeds).sample
    with torch.no_grad():
        expected = predict()
        pipeline.unet.delete_adapters("default")
        # Ours in diffusers.
        written = place / "ours-kohya.safetensors"
        seedpo.run("adapter", "convert", path, written, "--to", "kohya")
        pipeline.load_lora_weights(str(written.parent), weight_name=written.name)
        record(name, "our kohya file in diffusers: noise_pred", off(predict(), expected), FORWARD)
        with_ours = picture(pipeline, x)
        pipeline.unload_lora_weights()
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        record(name, "our kohya file in diffusers: picture", off(with_ours, picture(pipeline, x)), FORWARD)
        pipeline.unload_lora_weights()
        # Theirs in seedpo.
        for names in ("diffusers", "original"):
            theirs = kohya_of(path, pipeline.unet, names)
            if names == "diffusers":
                pipeline.load_lora_weights(str(theirs.parent), weight_name=theirs.name)
                expected_kohya = predict()
                pipeline.unload_lora_weights()
            out = seedpo.probe(folder, "unet", {"adapter": str(theirs)}, latents=x.latents, timestep=x.timestep, **x.prompt)
            record(name, f"kohya file ({names} block names): noise_pred", off(out["noise_pred"], expected_kohya), FORWARD)
        # Merged into the weights, with a weight of its own.
        merged = place / "merged"
        seedpo.run("adapter", "merge", "--model", folder, f"{path}:0.7", merged)
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
        pipeline.unet.set_adapters(pipeline.unet.active_adapters(), 0.7)
        expected = predict()
        pipeline.unload_lora_weights()
        again = load_pipeline(merged)
        record(name, "merged folder in diffusers: noise_pred", off(x.unet(again)(x.latents, x.timestep, x.embeds).sample, expected), FORWARD)
    record(name, "adapter inspect", 0 if "kohya" in seedpo.run("adapter", "inspect", written) else 1, 0)


def picture(pipeline, x):
    """Latents of four guided steps from the same noise."""
    negative = {"negative_prompt_embeds": x.negative.expand_as(x.embeds)}
    if x.added:
        negative |= {"pooled_prompt_embeds": x.added["pooled"], "negative_pooled_prompt_embeds": x.negative_pooled.expand_as(x.added["pooled"])}
    return pipeline(prompt_embeds=x.embeds, **negative, num_inference_steps=4, guidance_scale=5.0, latents=x.latents.clone(), output_type="latent", height=16, width=16).images


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seedpo", type=Path, default=ROOT / "target/release/seedpo")
    options.add_argument("--only", nargs="*", default=list(FAMILIES), help="families")
    chosen = options.parse_args()
    chosen.seedpo.is_file() or sys.exit(f"interop_formats: {chosen.seedpo} is missing; `make build` makes it.")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    disable_progress_bar()
    disable_transformers_bar()
    with tempfile.TemporaryDirectory() as tmp:
        scratch = Path(tmp)
        for name in chosen.only:
            folder = make_pipeline(scratch, name)
            pipeline = load_pipeline(folder)
            with torch.no_grad():
                x = Inputs(pipeline)
            expected = outputs(Seedpo(chosen.seedpo, scratch), folder, x)
            check_folders(chosen.seedpo, scratch, name, folder, pipeline, x, expected)
            check_single_files(chosen.seedpo, scratch, name, folder, pipeline, x, expected)
            check_adapters(chosen.seedpo, scratch, name, folder, pipeline, x)
            check_network_adapter(Seedpo(chosen.seedpo, scratch), scratch, name, folder, pipeline, x)
            check_layers(chosen.seedpo, scratch, name, folder, x)
    print(f"\n{len(interop_common.rows)} checks, {interop_common.failures} failed")
    sys.exit(1 if interop_common.failures else 0)


if __name__ == "__main__":
    main()
