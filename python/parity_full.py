#!/usr/bin/env python3
"""The U-Nets of Stable Diffusion 1.5 and SDXL at their full width, seedpo against diffusers.

    .venv/bin/python python/parity_full.py            (or: make parity)

Writes each U-Net with random weights (the other parts of the folder are small), predicts noise for the same latents with
diffusers and with `seedpo probe`, both in float32, and prints the largest difference relative to the largest value. It
must be below 1e-4. One process at a time: SDXL needs 11 GB of memory and 6 GB of disk, SD 1.5 a third of that. The
folders are deleted afterwards.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file, save_file

import make_models as models

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4
# The smallest text encoders that still give prompt embeddings of the full width, and the smallest autoencoder.
SHALLOW = {"num_hidden_layers": 1, "intermediate_size": 64}


def specification(kind):
    unet, vae, scheduler, texts = models.KINDS[kind]
    small = {key: models.VAE_TINY[key] for key in ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups")}
    return unet, vae | small, scheduler, [(text | SHALLOW, pad) for text, pad in texts]


def copy_tokenizer(folder, pad_token):
    """A small vocabulary; no prompt is encoded here."""
    second = "_2" if pad_token == "!" else ""
    shutil.copytree(ROOT / f"crates/model/tests/fixtures/sdxl/tokenizer{second}", folder)


def inputs(unet, size):
    """Two latents at two timesteps, of any side: a U-Net of convolutions and attention has no size of its own."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    tensors = {"latents": draw(2, 4, size, size), "timestep": torch.tensor([981, 21]), "prompt_embeds": draw(2, 77, unet["cross_attention_dim"])}
    if unet.get("addition_embed_type"):
        width = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
        ids = [[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0], [768.0, 1024.0, 16.0, 8.0, 512.0, 640.0]]
        tensors |= {"pooled": draw(2, width), "time_ids": torch.tensor(ids)}
    return tensors


@torch.no_grad()
def reference(folder, case, out):
    """What diffusers predicts; runs in a process of its own, so that its memory is given back."""
    x = load_file(case)
    unet = models.UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32).eval()
    added = {"text_embeds": x["pooled"], "time_ids": x["time_ids"]} if "pooled" in x else None
    save_file({"noise_pred": unet(x["latents"], x["timestep"], x["prompt_embeds"], added_cond_kwargs=added).sample}, out)


def timed(command):
    started = time.time()
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"parity: {' '.join(map(str, command))}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return time.time() - started


def compare(kind, scratch, seedpo, size):
    folder, case, theirs, ours = (scratch / name for name in (kind, "case.safetensors", "theirs.safetensors", "ours.safetensors"))
    spec = specification(kind)
    parameters = models.make(spec, folder, "f16", 0, copy_tokenizer)
    save_file(inputs(spec[0], size), case, metadata={"what": "unet", "settings": json.dumps({})})
    seconds = [timed([sys.executable, __file__, "--reference", folder, case, theirs]),
               timed([seedpo, "probe", "--model", folder, "--case", case, "--out", ours, "--dtype", "f32"])]
    shutil.rmtree(folder)
    expected, found = (load_file(path)["noise_pred"].double() for path in (theirs, ours))
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    verdict = "ok" if error < TOLERANCE else "FAIL"
    print(f"{kind:<6} {parameters:>13,} parameters  relative error {error:.1e}  (spread of the prediction {expected.std():.3f}; "
          f"with loading: diffusers {seconds[0]:.0f} s, seedpo {seconds[1]:.0f} s)  {verdict}", flush=True)
    return verdict == "ok"


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seedpo", type=Path, default=ROOT / "target/release/seedpo")
    options.add_argument("--only", nargs="*", choices=("sd15", "sdxl"), default=["sd15", "sdxl"])
    options.add_argument("--size", type=int, default=32, help="side of the latents")
    options.add_argument("--scratch", type=Path, default=ROOT / "target", help="where the folders are written for a while")
    options.add_argument("--reference", type=Path, nargs=3, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.reference:
        return reference(*chosen.reference)
    chosen.seedpo.is_file() or sys.exit(f"parity: {chosen.seedpo} is missing; `make build` makes it.")
    with tempfile.TemporaryDirectory(prefix="parity-", dir=chosen.scratch) as scratch:
        passed = [compare(kind, Path(scratch), chosen.seedpo.resolve(), chosen.size) for kind in chosen.only]
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
