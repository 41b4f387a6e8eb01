#!/usr/bin/env python3
"""Hold what `seedpo train --dry-run` predicts against what then happens.

    python3 python/dry_run_check.py                                   the built-in model, SPO and D3PO
    python3 python/dry_run_check.py --sd15 target/models/sd15         besides, a folder of Stable Diffusion 1.5's size
                                                                      (python/make_models.py sd15) at 256 x 256 in bf16

One thread. Peak memory is ru_maxrss of a real run; CPU seconds per iteration are what a longer run uses more than a
shorter one, per iteration between them, so that loading and the first iteration's set-up do not count; every pair is kept (threshold 0).
Prints predicted / actual, and exits with 1 where memory is more than 15 % off. CPU time is shown, and needs
a quiet machine to be judged.
Standard library only.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ["red apple", "cat face", "bicycle", "rainbow"]
COMMON = ["--judge", "colourfulness", "--threshold", "0", "--validation-steps", "0", "--device", "cpu", "--threads", "1"]
SMALL = ["--steps", "6", "--prompts-per-iteration", "4", "--rollout-batch-size", "4", "--dtype", "f32"]
SPO = ["--method", "spo", "--candidates", "4", "--divert-start-step", "2", "--train-batch-size", "16"]
D3PO = ["--method", "d3po", "--beta", "0.1", "--train-batch-size", "4", "--train-micro-batch-size", "8"]
SD15 = ["--resolution", "256", "--dtype", "bf16", "--steps", "5", "--method", "spo", "--candidates", "2", "--divert-start-step", "1",
        "--prompts-per-iteration", "1", "--rollout-batch-size", "1", "--train-batch-size", "4"]
CASES = {
    "built-in, SPO": SMALL + SPO,
    "built-in, SPO, gradient checkpointing": SMALL + SPO + ["--gradient-checkpointing"],
    "built-in, D3PO": SMALL + D3PO,
    "built-in, SPO, full fine-tuning": SMALL + SPO + ["--finetuning-type", "full"],
}


def run(arguments, log):
    """The command's standard output, CPU seconds and peak resident bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(log, "wb") as errors:
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment)
        output = process.stdout.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"dry_run_check: this command failed:\n  {' '.join(arguments)}\n{Path(log).read_text(errors='replace')}")
    return output, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def check(title, seedpo, settings, scratch):
    """One row of the table, and whether memory was predicted within 15 %."""
    base = [seedpo, "train", *settings, *COMMON, "--output-dir", str(scratch / "runs")]
    # An epoch is one iteration.
    for prompt in PROMPTS[: int(settings[settings.index("--prompts-per-iteration") + 1])]:
        base += ["--prompts", prompt]
    table, _, _ = run([*base, "--max-train-steps", "1", "--dry-run"], scratch / "dry.log")
    iteration = float(re.search(r"one iteration, at most +\S+ +(\S+)", table)[1])
    peak = float(re.search(r"peak memory +(\S+)", table)[1])
    epochs = (1, 3)
    used = [run([*base, "--num-train-epochs", str(n), "--quiet"], scratch / "run.log")[1:] for n in epochs]
    actual_cpu, actual_peak = (used[1][0] - used[0][0]) / (epochs[1] - epochs[0]), max(peak for _, peak in used) / 2**30
    ratios = iteration / actual_cpu, peak / actual_peak
    print(f"| {title} | {peak:.2f} | {actual_peak:.2f} | {ratios[1]:.2f} | {iteration:.2f} | {actual_cpu:.2f} | {ratios[0]:.2f} |", flush=True)
    return abs(ratios[1] - 1) <= 0.15


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seedpo", default=str(ROOT / "target/release/seedpo"))
    options.add_argument("--sd15", metavar="FOLDER", help="also measure this folder")
    options.add_argument("--only-sd15", action="store_true")
    chosen = options.parse_args()
    cases = {} if chosen.only_sd15 else dict(CASES)
    if chosen.sd15:
        sd15 = ["--model", str(Path(chosen.sd15).resolve()), *SD15]
        cases["SD 1.5's size, 256 x 256, SPO"] = sd15
    print("| case | peak GiB, predicted | actual | ratio | CPU s per iteration, predicted | actual | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        good = [check(title, chosen.seedpo, settings, Path(scratch)) for title, settings in cases.items()]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
