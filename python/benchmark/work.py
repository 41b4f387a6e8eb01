"""One piece of work, done by the PyTorch baseline and by seedpo: the command lines of both, and what they report."""

import json
import statistics
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.pictures import write_pairs
from benchmark.process import Used, run

BASELINE = Path(__file__).resolve().parent.parent / "baseline"
PROMPTS = ("red apple", "cat face", "bicycle", "rainbow", "rocket", "snowman", "guitar", "sunflower")
PARTS = ("rollout", "judge", "train")
# Of each method that both sides have, as published.
BETA = {"d3po": 0.1, "spo": 10, "diffusion-dpo": 2500}
LEARNING_RATE = {"d3po": 3e-5, "spo": 6e-5, "diffusion-dpo": 1e-4}


@dataclass(frozen=True)
class Place:
    """Where and with what everything runs."""

    seedpo: Path
    python: str
    scratch: Path
    device: str = "cpu"
    threads: int = 1
    environment: dict = field(default_factory=dict)

    @property
    def gpu(self):
        """The GPU's number, None on the CPU."""
        return None if self.device == "cpu" else int(self.device.partition(":")[2] or 0)


@dataclass(frozen=True)
class Work:
    """What is done, each iteration on `prompts` prompts, or pairs of pictures for diffusion-dpo. `our_dtype` None leaves
    seedpo its default. `pytorch_flags` and `seedpo_flags` are economies that a side is given; they change memory and
    speed, never the work."""

    title: str
    method: str
    model: Path
    dtype: str = "f32"
    our_dtype: str | None = "f32"
    prompts: int = 1
    steps: int = 20
    candidates: int = 4
    divert: int = 4
    train_batch: int = 1
    resolution: int | None = None
    iterations: int = 1
    warm_up: int = 0
    adapter: Path | None = None
    first_update: bool = False
    pytorch_flags: tuple = ()
    seedpo_flags: tuple = ()

    @property
    def repetitions(self):
        return self.warm_up + self.iterations


@dataclass(frozen=True)
class Measured:
    """Seconds of each counted repetition, of its parts where they are told apart, pairs of each, and the process."""

    seconds: list
    parts: list
    pairs: list
    used: Used
    dtype: str

    def part(self, name):
        return statistics.median(one[name] for one in self.parts) if self.parts else None


def pytorch(work, place):
    """The baseline's figures."""
    out, folder = place.scratch / "baseline.json", Path(tempfile.mkdtemp(dir=place.scratch))
    command = [place.python, BASELINE, "--model", work.model, "--method", work.method,
               "--prompts", prompts_file(place, work.prompts), "--batch", work.prompts, "--train-batch", work.train_batch,
               "--steps", work.steps, "--candidates", work.candidates, "--divert-start-step", work.divert,
               "--threshold", 0, "--rank", 4, "--dtype", work.dtype, "--threads", place.threads, "--device", place.device,
               "--iterations", work.repetitions, "--seed", 1, "--json", out, *work.pytorch_flags]
    if work.resolution:
        command += ["--resolution", work.resolution]
    if work.method == "sample":
        command += ["--adapter", work.adapter, "--out", folder]
    if work.method == "diffusion-dpo":
        command += ["--pairs", pairs_file(work, place)]
    used = run(command, place.scratch / "baseline.log", place.environment, place.gpu)
    done = json.loads(out.read_text())["iterations"]
    if work.first_update:
        return Measured([done[0]["finished_at"] - used.began], [], [], used, work.dtype)
    counted = done[work.warm_up:]
    parts = [{part: one[f"{part}_seconds"] for part in PARTS} for one in counted] if work.method != "sample" else []
    return Measured([one["seconds"] for one in counted], parts, [one.get("pairs") for one in counted], used, work.dtype)


def seedpo(work, place):
    """seedpo's figures."""
    return (seedpo_sample if work.method == "sample" else seedpo_train)(work, place)


def seedpo_command(work, place, command, settings):
    """Run a command of seedpo with the settings that both of them share."""
    shared = {"model": work.model, "dtype": work.our_dtype, "threads": place.threads, "device": place.device,
              "resolution": work.resolution} | settings
    flags = [f"--{key}={value}" for key, value in shared.items() if value is not None]
    return run([place.seedpo, command, "--quiet", *flags, *work.seedpo_flags], place.scratch / "seedpo.log",
               place.environment, place.gpu)


def seedpo_sample(work, place):
    """`seedpo sample`, timed by when each batch's last file was written: its first batch covers loading."""
    folder = Path(tempfile.mkdtemp(dir=place.scratch)) / "pictures"
    used = seedpo_command(work, place, "sample", {
        "adapter": work.adapter, "prompts": prompts_file(place, work.prompts * work.repetitions), "out": folder,
        "steps": work.steps, "guidance-scale": 5, "batch": work.prompts, "sampler": "ddim", "eta": 0, "seed": 1,
    })
    written = sorted(path.stat().st_mtime_ns for path in folder.glob("*.png"))
    ends = written[work.prompts - 1::work.prompts]
    if len(ends) != work.repetitions or work.warm_up < 1:
        raise ValueError(f"{work.title}: {len(written)} pictures in {folder}, expected {work.prompts * work.repetitions}, "
                         "and a batch to warm up")
    seconds = [(after - before) / 1e9 for before, after in zip(ends, ends[1:])]
    return Measured(seconds[work.warm_up - 1:], [], [], used, work.our_dtype or "default")


def seedpo_train(work, place):
    """`seedpo train`; an iteration's seconds are summed over its updates."""
    runs = Path(tempfile.mkdtemp(dir=place.scratch))
    if work.method == "diffusion-dpo":
        # As many pairs as the iterations together take: each is encoded within its own.
        source = {"pairs-file": pairs_file(work, place), "num-train-epochs": 1, "guidance-scale": 1}
    else:
        source = {"prompts-file": prompts_file(place, work.prompts), "num-train-epochs": work.repetitions, "guidance-scale": 5}
    used = seedpo_command(work, place, "train", source | {
        "method": work.method, "judge": "jpeg-compressibility",
        "output-dir": runs, "name": "bench", "steps": work.steps, "candidates": work.candidates,
        "divert-start-step": work.divert, "threshold": 0, "prompts-per-iteration": work.prompts,
        "rollout-batch-size": work.prompts, "train-batch-size": work.train_batch, "rank": 4,
        "beta": BETA[work.method], "learning-rate": LEARNING_RATE[work.method],
        "validation-steps": 0, "checkpointing-steps": 10**6, "seed": 1,
    })
    metrics = runs / "bench/metrics.jsonl"
    updates = [line for line in map(json.loads, metrics.read_text().splitlines()) if line["kind"] == "update"]
    dtype = work.our_dtype or tomllib.loads((runs / "bench/config.toml").read_text())["dtype"]
    if work.first_update:
        # The line of the update is the last that is written there.
        return Measured([metrics.stat().st_mtime_ns / 1e9 - used.began], [], [], used, dtype)
    iterations = {}
    for line in updates:
        one = iterations.setdefault(line["iteration"], {part: 0.0 for part in PARTS} | {"pairs": line["pairs_kept"]})
        for part in PARTS:
            one[part] += line[f"seconds_{part}"]
    if len(iterations) < work.repetitions:
        raise ValueError(f"{work.title}: in {work.repetitions - len(iterations)} of {work.repetitions} iterations every pair was "
                         "tied, so seedpo had nothing to train on; use a model whose pictures differ, or more prompts.")
    counted = [iterations[key] for key in sorted(iterations)][work.warm_up:]
    seconds = [sum(one[part] for part in PARTS) for one in counted]
    return Measured(seconds, counted, [one["pairs"] for one in counted], used, dtype)


def pairs_file(work, place):
    """A file of pairs of random pictures, `prompts` for each repetition."""
    count = work.prompts * work.repetitions
    prompts = [PROMPTS[n % len(PROMPTS)] for n in range(count)]
    return write_pairs(Path(tempfile.mkdtemp(dir=place.scratch)), prompts, work.resolution or 64)


def prompts_file(place, count):
    """A file of that many prompts."""
    path = place.scratch / f"prompts-{count}.txt"
    path.write_text("\n".join(PROMPTS[n % len(PROMPTS)] for n in range(count)) + "\n", encoding="utf-8")
    return path
