"""One update of every method by seedpo alone: that each runs at Stable Diffusion's size, and what it takes."""

import json
import tempfile
from pathlib import Path

from benchmark.page import MIB, say
from benchmark.pictures import write_pairs
from benchmark.process import Failed, run
from benchmark.work import PROMPTS

ONLINE = ("d3po", "spo", "ddpo", "dpok")
OFFLINE = ("diffusion-dpo", "seppo", "spin", "sft")
# A method without a reference policy to flatten has no γ.
GAMMA = {"ddpo": 0, "dpok": 0, "sft": 0}
SETTINGS = {"judge": "jpeg-compressibility", "steps": 4, "prompts-per-iteration": 1, "rollout-batch-size": 1,
            "train-batch-size": 1, "train-micro-batch-size": 1, "max-train-steps": 1, "validation-steps": 0, "dtype": "bf16",
            "resolution": 256, "seed": 1}
SPO = {"candidates": 2, "divert-start-step": 2, "threshold": 0}


def table(model, place):
    """The table as text, and whether every method ran."""
    lines, good = ["| method | γ | seconds of the update | of its rollout | peak MiB |", "| --- | --- | --- | --- | --- |"], True
    pairs = write_pairs(Path(tempfile.mkdtemp(dir=place.scratch)), PROMPTS[:1], SETTINGS["resolution"])
    for method in (*ONLINE, *OFFLINE):
        gamma = GAMMA.get(method, 0.5)
        runs = Path(tempfile.mkdtemp(dir=place.scratch))
        settings = SETTINGS | {"model": model, "method": method, "entropy-gamma": gamma, "output-dir": runs, "name": "one",
                               "threads": place.threads, "device": place.device}
        settings |= SPO if method == "spo" else {}
        # Advantages need several samples of a prompt.
        settings |= {"prompts-per-iteration": 2, "train-batch-size": 2} if method in ("ddpo", "dpok") else {}
        settings |= {"pairs-file": pairs} if method in OFFLINE else {}
        flags = [f"--{key}={value}" for key, value in settings.items()]
        flags += ["--gradient-checkpointing"]
        flags += [f"--prompts={PROMPTS[0]}"] if method in ONLINE else []
        try:
            used = run([place.seedpo, "train", "--quiet", *flags], place.scratch / "seedpo.log", place.environment, place.gpu)
            metrics = map(json.loads, (runs / "one/metrics.jsonl").read_text().splitlines())
            update = next(line for line in metrics if line["kind"] == "update")
            rollout = update["seconds_rollout"] + update["seconds_judge"]
            lines.append(f"| {method} | {gamma} | {update['seconds_train']:.1f} | {rollout:.1f} | {used.peak / MIB:.0f} |")
        except (Failed, StopIteration) as error:
            good = False
            lines.append(f"| {method} | {gamma} | did not run: {str(error).splitlines()[0]} | | |")
            say(str(error))
        say(lines[-1])
    lines += ["", "One update each, LoRA rank 4, 256 × 256, bf16, gradient checkpointing, 4 steps, one pair (DDPO, DPOK: two "
                  f"samples); {place.threads} thread(s)."]
    return "\n".join(lines), good
