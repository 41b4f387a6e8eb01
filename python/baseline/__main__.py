"""D3PO, SPO, Diffusion-DPO and sampling in PyTorch (diffusers + peft): what `make bench` measures seedpo against.

    .venv/bin/python python/baseline --model FOLDER --method spo --prompts 8 --steps 20 --batch 4 --iterations 3 --json out.json

It is shaped like the public implementations (yk7333/d3po, RockeyCoss/SPO, diffusers' train_diffusion_dpo_lora.py) at their
own default settings and is meant to be a fair opponent: scaled-dot-product attention, no autograd graph in rollouts or
for the reference, no logging; gradient checkpointing, VAE slicing and gradient accumulation where asked for. Behaviours
of the first two that it mirrors on purpose, because the public code has them:

* the reference policy is a second, deep-copied U-Net;
* rollouts run the policy with its LoRA layers unmerged (peft modules beside the base weights);
* guidance by a duplicated batch (empty prompt and prompt in one pass), in sampling and in training;
* both sides of a pair go through policy and reference separately, also in SPO, where they share x_t, t and prompt;
* D3PO: prompts are encoded for both trajectories, the second trajectory runs all of its steps although its first shares
  x_T with the other's; training walks the steps one by one, gradients accumulated over a trajectory's steps, and pairs
  that tie still pay for forward and backward;
* SPO: from `divert_start_step` on, K candidates are drawn, the U-Net runs on all K at the next timestep, their x0 are
  decoded and judged, one candidate drawn at random carries on. Its noise prediction is *reused* (the public code gathers
  it from the K predictions), so this baseline does so as well;
* per update AdamW with the gradient norm clipped at 1.

The judge is JPEG compressibility (Pillow, quality 95; d3po's definition), for SPO applied to the decoded x0. The modules
diffusion_dpo and sample say what they keep of theirs.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

WORDS = ("red apple", "cat face", "bicycle", "rainbow", "rocket", "snowman", "guitar", "sunflower", "fish", "house", "heart",
         "clock", "banana", "airplane", "flag", "star")


def arguments():
    options = argparse.ArgumentParser(prog="baseline", description=__doc__.splitlines()[0])
    options.add_argument("--model", required=True, type=Path, help="a Stable Diffusion folder in diffusers layout")
    options.add_argument("--method", required=True, choices=("d3po", "spo", "diffusion-dpo", "sample"))
    options.add_argument("--prompts", default="8", help="how many prompts per iteration, or a text file with one per line")
    options.add_argument("--steps", type=int, default=20, help="DDIM steps")
    options.add_argument("--batch", type=int, default=4, help="prompts sampled together")
    options.add_argument("--train-batch", type=int, help="pairs per update (default: as published)")
    options.add_argument("--micro-batch", type=int, help="SPO: pairs per forward, gradients accumulated (default: train-batch)")
    options.add_argument("--gradient-checkpointing", action="store_true")
    options.add_argument("--vae-slicing", action="store_true", help="decode one picture at a time")
    options.add_argument("--candidates", type=int, default=4, help="SPO's K")
    options.add_argument("--divert-start-step", type=int, default=4, help="SPO: ordinary steps before the branching")
    options.add_argument("--threshold", type=float, default=0.3, help="SPO: softmax difference a pair must exceed")
    options.add_argument("--guidance-scale", type=float, default=5.0)
    options.add_argument("--rank", type=int, default=4, help="LoRA rank (alpha = rank)")
    options.add_argument("--resolution", type=int, help="picture side in pixels (default: the model's own)")
    options.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="base weights; LoRA and losses stay f32")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--adapter", type=Path, help="sample: a LoRA file in diffusers layout")
    options.add_argument("--pairs", type=Path, help="diffusion-dpo: a .jsonl of prompt, winner, loser (pictures beside it)")
    options.add_argument("--out", type=Path, help="sample: the folder of the pictures")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--iterations", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path, help="write the measurements here")
    chosen = options.parse_args()
    if chosen.train_batch is None:
        chosen.train_batch = {"spo": 10}.get(chosen.method, 1)
    if chosen.method == "sample" and not (chosen.adapter and chosen.out):
        options.error("sample needs --adapter and --out")
    if chosen.method == "diffusion-dpo" and not chosen.pairs:
        options.error("diffusion-dpo needs --pairs")
    if chosen.prompts.isdigit():
        chosen.prompts = [WORDS[n % len(WORDS)] for n in range(int(chosen.prompts))]
    else:
        chosen.prompts = [line for line in Path(chosen.prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not chosen.prompts or len(chosen.prompts) % chosen.batch:
        options.error(f"{len(chosen.prompts)} prompts do not divide into batches of {chosen.batch}")
    return chosen


def prepare(chosen):
    """Whatever stays loaded, and the function of one iteration."""
    if chosen.method == "sample":
        from sample import Sampling

        sampling = Sampling(chosen)
        return sampling, sampling.iterate
    import d3po
    import diffusion_dpo
    import spo
    from common import Setup

    setup = Setup(chosen)
    module = {"d3po": d3po, "spo": spo, "diffusion-dpo": diffusion_dpo}[chosen.method]
    return setup, lambda: module.iterate(setup)


def main():
    chosen = arguments()
    import torch

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    # The public code's setting for GPUs; without effect on a CPU.
    torch.backends.cuda.matmul.allow_tf32 = True
    loaded, iterate = prepare(chosen)
    done = []
    for number in range(chosen.iterations):
        measured = iterate() | {"iteration": number, "finished_at": time.time()}
        done.append(measured)
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in measured.items()), file=sys.stderr)
    if chosen.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(chosen).items()}
        chosen.json.write_text(json.dumps({"settings": settings, "load_seconds": loaded.load_seconds, "iterations": done}, indent=1))


if __name__ == "__main__":
    main()
