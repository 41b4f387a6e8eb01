"""One training iteration of D3PO or SPO in PyTorch (diffusers + peft): what `make bench` measures seedpo against.

    .venv/bin/python python/baseline --model FOLDER --method spo --prompts 8 --steps 20 --batch 4 --iterations 3 --json out.json

It is shaped like the two public implementations (yk7333/d3po, RockeyCoss/SPO) at their own default settings and is
meant to be a fair opponent: scaled-dot-product attention, no autograd graph in rollouts or for the reference, no
gradient checkpointing, no logging. Behaviours it mirrors on purpose, because the public code has them:

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

The judge is JPEG compressibility (Pillow, quality 95; d3po's definition), for SPO applied to the decoded x0.
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
    options.add_argument("--method", required=True, choices=("d3po", "spo"))
    options.add_argument("--prompts", default="8", help="how many prompts per iteration, or a text file with one per line")
    options.add_argument("--steps", type=int, default=20, help="DDIM steps")
    options.add_argument("--batch", type=int, default=4, help="prompts sampled together")
    options.add_argument("--train-batch", type=int, help="pairs per forward (default: 1 for d3po, 10 for spo, as published)")
    options.add_argument("--candidates", type=int, default=4, help="SPO's K")
    options.add_argument("--divert-start-step", type=int, default=4, help="SPO: ordinary steps before the branching")
    options.add_argument("--threshold", type=float, default=0.3, help="SPO: softmax difference a pair must exceed")
    options.add_argument("--guidance-scale", type=float, default=5.0)
    options.add_argument("--rank", type=int, default=4, help="LoRA rank (alpha = rank)")
    options.add_argument("--resolution", type=int, help="picture side in pixels (default: the model's own)")
    options.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="base weights; LoRA and losses stay f32")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--iterations", type=int, default=1)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path, help="write the measurements here")
    chosen = options.parse_args()
    if chosen.train_batch is None:
        chosen.train_batch = {"d3po": 1, "spo": 10}[chosen.method]
    if chosen.prompts.isdigit():
        chosen.prompts = [WORDS[n % len(WORDS)] for n in range(int(chosen.prompts))]
    else:
        chosen.prompts = [line for line in Path(chosen.prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not chosen.prompts or len(chosen.prompts) % chosen.batch:
        options.error(f"{len(chosen.prompts)} prompts do not divide into batches of {chosen.batch}")
    return chosen


def main():
    chosen = arguments()
    import torch

    import d3po
    import spo
    from common import Setup, peak_rss_bytes

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    setup = Setup(chosen)
    iterate = {"d3po": d3po.iterate, "spo": spo.iterate}[chosen.method]
    done = []
    for number in range(chosen.iterations):
        before = time.process_time()
        measured = iterate(setup) | {"iteration": number, "peak_rss_bytes": peak_rss_bytes()}
        measured["cpu_seconds"] = time.process_time() - before
        done.append(measured)
        print(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in measured.items()), file=sys.stderr)
    if chosen.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(chosen).items()}
        chosen.json.write_text(json.dumps({"settings": settings, "load_seconds": setup.load_seconds, "iterations": done}, indent=1))


if __name__ == "__main__":
    main()
