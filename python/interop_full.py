#!/usr/bin/env python3
"""Show with the real diffusers that the U-Net of full fine-tuning is one of its own.

    .venv/bin/python python/interop_full.py            (part of: make interop)

Trains every parameter of a small random pipeline's U-Net with `seedpo train --finetuning-type full`, in f32 and in bf16
passes; takes the result with `UNet2DConditionModel.from_pretrained`; and compares its predictions with those of `seedpo
probe` on the model folder that `seedpo adapter merge` makes of it, which `DiffusionPipeline.from_pretrained` loads too.
Prints a table of the largest errors and exits 1 if one is above its tolerance.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import interop_common as common
from interop_common import FORWARD, ROOT, Inputs, Seedpo, load_pipeline, make_pipeline, off, record  # isort: skip

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils.logging import disable_progress_bar
from transformers.utils.logging import disable_progress_bar as disable_transformers_bar

TRAIN = """--finetuning-type full --method spo --judge colourfulness --threshold 0 --prompts red,blue --steps 6
    --prompts-per-iteration 2 --train-batch-size 4 --learning-rate 0.001 --max-train-steps 2 --validation-steps 0""".split()


def check(seedpo, kind, folder, scratch, dtype):
    """One trained U-Net: every tensor has moved, diffusers takes it, and both predict the same."""
    run, merged = scratch / f"{kind}-{dtype}", scratch / f"{kind}-{dtype}-merged"
    seedpo.run("train", "--model", folder, "--output-dir", scratch, "--name", run.name, "--dtype", dtype, *TRAIN)
    base = load_pipeline(folder)
    unet, info = UNet2DConditionModel.from_pretrained(run, subfolder="unet", output_loading_info=True)
    wrong = sum(len(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    record(kind, f"{dtype}: tensors that from_pretrained refuses", wrong, 0)
    before = base.unet.state_dict()
    still = sum(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())
    record(kind, f"{dtype}: tensors that were not trained", still, 0)
    changed = [key for key, value in unet.config.items() if not key.startswith("_") and base.unet.config.get(key) != value]
    record(kind, f"{dtype}: changes of the configuration", len(changed), 0, ", ".join(changed))
    seedpo.run("adapter", "merge", "--model", folder, run, merged)
    x = Inputs(base)
    found = seedpo.probe(merged, "unet", latents=x.latents, timestep=x.timestep, **x.prompt)["noise_pred"]
    with torch.no_grad():
        expected = unet.eval()(x.latents, x.timestep, x.embeds).sample
        again = load_pipeline(merged).unet(x.latents, x.timestep, x.embeds).sample
    record(kind, f"{dtype}: noise_pred, probe against from_pretrained", off(found, expected), FORWARD)
    record(kind, f"{dtype}: noise_pred, the merged folder", off(again, expected), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seedpo", type=Path, default=ROOT / "target/release/seedpo", help="the command under test")
    arguments = parser.parse_args()
    disable_progress_bar()
    disable_transformers_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        seedpo = Seedpo(arguments.seedpo.resolve(), scratch)
        for kind in ("sd1", "sd2"):
            folder = make_pipeline(scratch, kind)
            for dtype in ("f32", "bf16"):
                check(seedpo, kind, folder, scratch, dtype)
    return 1 if common.failures else 0


if __name__ == "__main__":
    sys.exit(main())
