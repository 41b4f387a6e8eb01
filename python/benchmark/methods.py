"""One update of methods by seedpo alone: that each runs at Stable Diffusion's size, and what it takes."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmark.page import MIB, say
from benchmark.pictures import write_pairs
from benchmark.process import Failed, Used, run
from benchmark.work import PROMPTS

ONLINE = ("d3po", "spo", "ddpo", "dpok")
OFFLINE = ("diffusion-dpo", "seppo", "spin", "sft")
# A method without a reference policy to flatten has no γ.
GAMMA = {"ddpo": 0, "dpok": 0, "sft": 0}
SETTINGS = {"judge": "jpeg-compressibility", "steps": 4, "prompts-per-iteration": 1, "rollout-batch-size": 1,
            "train-batch-size": 1, "train-micro-batch-size": 1, "max-train-steps": 1, "validation-steps": 0, "dtype": "bf16",
            "resolution": 256, "seed": 1, "gradient-checkpointing": "true"}
SPO = {"candidates": 2, "divert-start-step": 2, "threshold": 0}


@dataclass(frozen=True)
class Update:
    """The first update of a run: its line of metrics.jsonl, and what the whole command used."""

    metrics: dict
    used: Used

    @property
    def rollout(self):
        """Seconds of sampling and judging."""
        return self.metrics["seconds_rollout"] + self.metrics["seconds_judge"]

    @property
    def train(self):
        """Seconds of the update itself."""
        return self.metrics["seconds_train"]


def gamma(method):
    return GAMMA.get(method, 0.5)


def one_update(method, model, place, own=None):
    """One update of `method` on the model folder with SETTINGS, changed by `own`. Raises Failed."""
    settings = SETTINGS | (SPO if method == "spo" else {})
    # Advantages need several samples of a prompt.
    settings |= {"prompts-per-iteration": 2, "train-batch-size": 2} if method in ("ddpo", "dpok") else {}
    settings |= own or {}
    runs = Path(tempfile.mkdtemp(dir=place.scratch))
    settings |= {"model": model, "method": method, "entropy-gamma": gamma(method), "output-dir": runs, "name": "one",
                 "threads": place.threads, "device": place.device}
    if method in OFFLINE:
        settings["pairs-file"] = write_pairs(Path(tempfile.mkdtemp(dir=place.scratch)), PROMPTS[:1], settings["resolution"])
    else:
        settings["prompts"] = PROMPTS[0]
    flags = [f"--{key}={value}" for key, value in settings.items()]
    used = run([place.seedpo, "train", "--quiet", *flags], place.scratch / "seedpo.log", place.environment, place.gpu)
    metrics = map(json.loads, (runs / "one/metrics.jsonl").read_text().splitlines())
    update = next((line for line in metrics if line["kind"] == "update"), None)
    if update is None:
        raise Failed("the run made no update")
    return Update(update, used)


def table(model, place, methods=(*ONLINE, *OFFLINE), resolution=SETTINGS["resolution"]):
    """The table as text, and whether every method ran."""
    lines, good = ["| method | γ | seconds of the update | of its rollout | peak MiB |", "| --- | --- | --- | --- | --- |"], True
    for method in methods:
        try:
            one = one_update(method, model, place, {"resolution": resolution})
            lines.append(f"| {method} | {gamma(method)} | {one.train:.1f} | {one.rollout:.1f} | {one.used.peak / MIB:.0f} |")
        except Failed as error:
            good = False
            lines.append(f"| {method} | {gamma(method)} | did not run: {str(error).splitlines()[0]} | | |")
            say(str(error))
        say(lines[-1])
    samples = " (DDPO, DPOK: two samples)" if "ddpo" in methods else ""
    lines += ["", f"One update each, LoRA rank 4, {resolution} × {resolution}, bf16, gradient checkpointing, 4 steps, one pair{samples}; "
                  f"{place.threads} thread(s)."]
    return "\n".join(lines), good
