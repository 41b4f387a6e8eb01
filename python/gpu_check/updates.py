"""One update of each method that this seedpo has, on the built-in model and at Stable Diffusion 1.5's size."""

import math
import re

from benchmark.page import MIB
from benchmark.process import Failed, help_of
from benchmark.work import BETA, Work, seedpo_train
from gpu_check.parts import Result


def methods(scene):
    """The methods that `seedpo train --help` lists."""
    text = " ".join(help_of(scene.place.seedpo, "train", scene.place.environment).split())
    listed = re.search(r"--method <TEXT>.*?Range: ([^.\[]+)\.", text)
    if not listed:
        raise Failed("`seedpo train --help` does not say which methods there are")
    return [name.strip() for name in listed.group(1).split("|")]


def works(scene, method):
    """The update on each model, as many pairs as one prompt gives."""
    yield scene.built_in.name, Work("", method, scene.built_in, steps=6, divert=3, train_batch=10)
    if scene.large:
        yield scene.large_name, Work("", method, scene.large, dtype="bf16", our_dtype="bf16", steps=4, divert=2, train_batch=10,
                                     candidates=2, resolution=scene.large_resolution)


def check(scene):
    """A row for each method and model: seconds and memory."""
    for method in methods(scene):
        if method not in BETA:
            yield Result("update", method, "not run: benchmark/work.py does not say what it trains on", "", False)
            continue
        for name, work in works(scene, method):
            title = f"{method}, {name}, {work.our_dtype}"
            try:
                one = seedpo_train(work, scene.place)
            except (Failed, ValueError) as error:
                yield Result("update", title, f"failed: {error}", "", False)
                continue
            used = one.used.peak if one.used.gpu_peak is None else one.used.gpu_peak
            where = "" if one.used.gpu_peak is None else "GPU "
            yield Result("update", title, f"{sum(one.seconds):.2f} s (whole command {one.used.wall:.1f} s), {used / MIB:.0f} {where}MiB",
                         "", math.isfinite(sum(one.seconds)))
