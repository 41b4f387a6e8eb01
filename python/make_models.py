#!/usr/bin/env python3
"""Write Stable Diffusion folders with random weights, in diffusers layout, spelled as the public folders spell them.

    .venv/bin/python python/make_models.py sd15 target/models/sd15 --dtype f16

Kinds: `sd15` (exactly the configuration of Stable Diffusion 1.5: 860 M-parameter U-Net), `sd21` (Stable Diffusion 2.1:
v-prediction, linear projections, per-level head counts), `sdxl` (exactly SDXL base 1.0: 2.6 B-parameter U-Net, two text
encoders; 7 GB in f16), `small` (16x16 latents, an 11 M-parameter U-Net, 64x64 pictures) and `tiny`, `tiny-v`, `tiny-xl`
(seconds to run; tests). Their pictures are noise: they serve measurements of time and memory, and
tests. The tokenizer is CLIP's own; its merges come from the PyPI package open_clip_torch, or from
`--vocabulary bpe_simple_vocab_16e6.txt.gz`. Every folder is loaded back with diffusers before this script ends.
"""

import argparse
import gzip
import json
import math
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.utils.logging import disable_progress_bar
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging as transformers_logging

MERGES_PACKAGE = "open_clip_torch==3.3.0"
MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
SUFFIXES = ("", "_2")  # of the first and second text encoder's folders

CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
END = "<|endoftext|>"

UNET_SD15 = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, "DownBlock2D"], "downsample_padding": 1,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", CROSS_UP, CROSS_UP, CROSS_UP],
}
UNET_SD21 = UNET_SD15 | {
    "_diffusers_version": "0.10.0.dev0", "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
    "dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False, "sample_size": 96,
    "upcast_attention": True, "use_linear_projection": True,
}
# A version from 0.9.0 on: for older folders diffusers overrides any sample_size below 64.
UNET_SMALL = UNET_SD15 | {
    "_diffusers_version": "0.38.0", "block_out_channels": [64, 128, 192], "cross_attention_dim": 128,
    "attention_head_dim": 4, "layers_per_block": 1, "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN], "sample_size": 16,
    "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
}
UNET_TINY = UNET_SD15 | {
    "_diffusers_version": "0.38.0", "block_out_channels": [32, 64], "cross_attention_dim": 32,
    "attention_head_dim": 2, "layers_per_block": 1, "down_block_types": [CROSS_DOWN, "DownBlock2D"], "up_block_types": ["UpBlock2D", CROSS_UP], "sample_size": 8,
}
UNET_SDXL = UNET_SD15 | {
    "_diffusers_version": "0.19.0.dev0", "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280],
    "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_dim": 2048, "cross_attention_norm": None, "down_block_types": ["DownBlock2D", CROSS_DOWN, CROSS_DOWN],
    "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None, "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None,
    "num_class_embeds": None, "only_cross_attention": False, "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default", "sample_size": 128,
    "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None, "time_embedding_type": "positional",
    "timestep_post_act": None, "transformer_layers_per_block": [1, 2, 10], "up_block_types": [CROSS_UP, CROSS_UP, "UpBlock2D"],
    "upcast_attention": None, "use_linear_projection": True,
}
UNET_TINY_XL = UNET_SDXL | {
    "_diffusers_version": "0.38.0", "addition_time_embed_dim": 8, "attention_head_dim": [2, 4, 4],
    "block_out_channels": [32, 64, 64], "cross_attention_dim": 64, "layers_per_block": 1,
    "projection_class_embeddings_input_dim": 32 + 6 * 8, "sample_size": 8, "transformer_layers_per_block": [1, 1, 2],
}
UNET_TINY_V = UNET_TINY | {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True}

VAE_SD15 = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3,
    "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
VAE_SD21 = VAE_SD15 | {"_diffusers_version": "0.10.0.dev0", "sample_size": 768}
VAE_SDXL = VAE_SD15 | {
    "_diffusers_version": "0.20.0.dev0", "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025,
}
VAE_SMALL = VAE_SD15 | {
    "block_out_channels": [32, 64, 64], "down_block_types": ["DownEncoderBlock2D"] * 3, "layers_per_block": 1,
    "norm_num_groups": 16, "sample_size": 64, "up_block_types": ["UpDecoderBlock2D"] * 3,
}
VAE_TINY = VAE_SMALL | {
    "block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "sample_size": 16,
}
VAE_TINY_XL = VAE_TINY | {"force_upcast": True, "scaling_factor": 0.13025}

TEXT_SD15 = {
    "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}
TEXT_SD21 = TEXT_SD15 | {
    "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 23, "projection_dim": 512, "transformers_version": "4.25.0.dev0",
}
TEXT_SMALL = TEXT_SD15 | {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 2}
TEXT_TINY = TEXT_SD15 | {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
TEXT_TINY_V = TEXT_TINY | {"hidden_act": "gelu"}
TEXT_SDXL = TEXT_SD15 | {"projection_dim": 768, "torch_dtype": "float16", "transformers_version": "4.32.0.dev0"}
PROJECTED = {"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu"}
TEXT2_SDXL = TEXT_SDXL | PROJECTED | {
    "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280,
}
TEXT2_TINY = TEXT_TINY | PROJECTED | {"projection_dim": 32}

SCHEDULER_SD15 = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}
SCHEDULER_SD21 = SCHEDULER_SD15 | {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": "v_prediction",
}
SCHEDULER_SDXL = SCHEDULER_SD15 | {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "interpolation_type": "linear",
    "prediction_type": "epsilon", "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False,
}

# U-Net, VAE, scheduler, and for each text encoder its configuration and its tokenizer's padding token.
KINDS = {
    "sd15": (UNET_SD15, VAE_SD15, SCHEDULER_SD15, [(TEXT_SD15, END)]),
    "sd21": (UNET_SD21, VAE_SD21, SCHEDULER_SD21, [(TEXT_SD21, "!")]),
    "sdxl": (UNET_SDXL, VAE_SDXL, SCHEDULER_SDXL, [(TEXT_SDXL, END), (TEXT2_SDXL, "!")]),
    "small": (UNET_SMALL, VAE_SMALL, SCHEDULER_SD15, [(TEXT_SMALL, END)]),
    "tiny": (UNET_TINY, VAE_TINY, SCHEDULER_SD15, [(TEXT_TINY, END)]),
    "tiny-v": (UNET_TINY_V, VAE_TINY, SCHEDULER_SD21, [(TEXT_TINY_V, "!")]),
    "tiny-xl": (UNET_TINY_XL, VAE_TINY_XL, SCHEDULER_SDXL, [(TEXT_TINY, END), (TEXT2_TINY, "!")]),
}


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def fetch_merges():
    """CLIP's merge list as text, from the package that ships it."""
    with tempfile.TemporaryDirectory() as scratch:
        run = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", scratch, MERGES_PACKAGE]
        if subprocess.run(run).returncode != 0:
            sys.exit(f"make_models: pip could not fetch {MERGES_PACKAGE}; give {MERGES_FILE} with --vocabulary instead.")
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            return gzip.decompress(archive.read(f"open_clip/{MERGES_FILE}")).decode("utf-8")


def byte_symbols():
    """The 256 printable characters that stand for bytes, in vocabulary order (as OpenAI's CLIP numbers them)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def write_tokenizer(folder, merges_text, pad_token):
    """vocab.json, merges.txt and the two settings files that SD folders carry."""
    # The list holds more merges than CLIP uses: 49,408 entries = 512 byte symbols + merges + 2 special tokens.
    merges = merges_text.split("\n")[1:49408 - 512 - 2 + 1]
    symbols = byte_symbols()
    joined = ["".join(merge.split()) for merge in merges]
    entries = [*symbols, *(s + "</w>" for s in symbols), *joined, "<|startoftext|>", "<|endoftext|>"]
    assert len(entries) == len(set(entries)) == 49408, len(entries)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({e: i for i, e in enumerate(entries)}, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    start, end = ({"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
                  for text in ("<|startoftext|>", "<|endoftext|>"))
    special = {"bos_token": start, "eos_token": end, "pad_token": pad_token, "unk_token": end}
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
        **{k: v if isinstance(v, str) else {"__type": "AddedToken"} | v for k, v in special.items()},
    })


def plain(config):
    return {key: value for key, value in config.items() if not key.startswith("_")}


def write_weights(state, path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(kind).contiguous() for name, value in state.items() if value.is_floating_point()}
    save_file(state, str(path), metadata={"format": "pt"})


def unet_weights(config, kind, seed):
    """PyTorch's default distributions, norms spread a little so that outputs depend on every input. Made one tensor at a
    time in the stored number type: the module itself would take twice the memory and more."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**plain(config))
    fan_in = {name.rpartition(".")[0]: math.prod(p.shape[1:]) for name, p in unet.named_parameters() if p.dim() > 1}
    state = {}
    for name, p in unet.named_parameters():
        inputs = fan_in.get(name.rpartition(".")[0])
        if inputs:
            value = (torch.rand(p.shape, generator=generator) * 2 - 1) / math.sqrt(inputs)
        else:
            value = name.endswith("weight") + 0.05 * torch.randn(p.shape, generator=generator)
        state[name] = value.to(kind)
    return state


def text_weights(config):
    """Of a text encoder, under the names of public folders: newer transformers drop the prefix `text_model.` in memory."""
    bookkeeping = ("architectures", "torch_dtype", "transformers_version")
    made = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}[config["architectures"][0]]
    model = made(CLIPTextConfig(**{k: v for k, v in config.items() if k not in bookkeeping}))
    spelled = lambda name: name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"
    return {spelled(name): value for name, value in model.state_dict().items()}


def write_index(folder, scheduler, texts):
    xl = len(texts) == 2
    index = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "_diffusers_version": "0.19.0.dev0" if xl else "0.6.0", "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }
    for suffix, (config, _) in zip(SUFFIXES, texts):
        index |= {f"text_encoder{suffix}": ["transformers", config["architectures"][0]], f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"]}
    index |= {"add_watermarker": None, "force_zeros_for_empty_prompt": True} if xl else {
        "feature_extractor": [None, None], "requires_safety_checker": False, "safety_checker": [None, None]}
    write_json(folder / "model_index.json", index)


def make(spec, folder, dtype, seed, tokenizer):
    """Writes the folder that `spec`, one of KINDS, describes; `tokenizer(folder, pad_token)` writes a tokenizer's files.
    Gives the number of the U-Net's parameters."""
    unet_config, vae_config, scheduler_config, texts = spec
    torch.manual_seed(seed)
    precision = {"f32": torch.float32, "f16": torch.float16}[dtype]
    new = Path(f"{folder}.partial")
    shutil.rmtree(new, ignore_errors=True)

    write_json(new / "scheduler/scheduler_config.json", scheduler_config)
    for name, config in (("unet", unet_config), ("vae", vae_config)):
        write_json(new / name / "config.json", config)
    for suffix, (config, pad_token) in zip(SUFFIXES, texts):
        tokenizer(new / f"tokenizer{suffix}", pad_token)
        write_json(new / f"text_encoder{suffix}/config.json", config)
        write_weights(text_weights(config), new / f"text_encoder{suffix}/model.safetensors", precision)
    weights = "diffusion_pytorch_model.safetensors"
    write_weights(AutoencoderKL(**plain(vae_config)).state_dict(), new / "vae" / weights, precision)
    unet = unet_weights(unet_config, precision, seed)
    parameters = sum(value.numel() for value in unet.values())
    write_weights(unet, new / "unet" / weights, precision)
    write_index(new, scheduler_config, texts)

    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return parameters


def check(folder):
    """Load the folder with diffusers and run one denoising step: what this script wrote must be a real folder."""
    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    large = (folder / "unet/diffusion_pytorch_model.safetensors").stat().st_size > 4e9
    kind = torch.bfloat16 if large else torch.float32
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=kind, local_files_only=True)
    assert len(pipeline.tokenizer) == 49408, len(pipeline.tokenizer)
    ids = pipeline.tokenizer(["a photo of a cat"]).input_ids[0]
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407], ids
    with torch.no_grad():
        embeds, _, *pooled = pipeline.encode_prompt("a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        # Random norms start at one; a position table that was not loaded would differ from the stored one.
        with safe_open(f"{folder}/text_encoder/model.safetensors", "pt") as file:
            stored = file.get_tensor("text_model.embeddings.position_embedding.weight")
        loaded = next(p for n, p in pipeline.text_encoder.named_parameters() if n.endswith("position_embedding.weight"))
        assert torch.equal(loaded, stored.to(kind)), "the text encoder's weights were not taken"
        latents = torch.randn(1, 4, 8, 8, dtype=kind)
        added = dict(text_embeds=pooled[0], time_ids=torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])) if pooled else None
        noise = pipeline.unet(latents, torch.tensor([500]), embeds, added_cond_kwargs=added).sample
        image = pipeline.vae.decode(latents).sample
    DDIMScheduler.from_config(pipeline.scheduler.config)
    assert noise.isfinite().all() and image.isfinite().all()
    return f"noise prediction spread {noise.std():.3f}, decoded picture spread {image.std():.3f}"


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("kind", choices=sorted(KINDS))
    options.add_argument("folder", type=Path)
    options.add_argument("--dtype", choices=("f32", "f16"), default="f32", help="how the weights are stored")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--vocabulary", type=Path, help=f"a local {MERGES_FILE}")
    options.add_argument("--keep", action="store_true", help="do nothing if the folder is already there")
    chosen = options.parse_args()
    if chosen.keep and (chosen.folder / "model_index.json").is_file():
        return
    merges = gzip.decompress(chosen.vocabulary.read_bytes()).decode("utf-8") if chosen.vocabulary else fetch_merges()
    chosen.folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = lambda folder, pad_token: write_tokenizer(folder, merges, pad_token)
    parameters = make(KINDS[chosen.kind], chosen.folder, chosen.dtype, chosen.seed, tokenizer)
    print(f"{chosen.folder}: {chosen.kind}, U-Net of {parameters:,} parameters, {check(chosen.folder)}")


if __name__ == "__main__":
    main()
