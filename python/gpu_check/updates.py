"""One update of each method that this seedpo has, on the built-in model and at Stable Diffusion 1.5's size."""

import math
import re

from benchmark.methods import OFFLINE, ONLINE, one_update
from benchmark.page import MIB
from benchmark.process import Failed, help_of
from gpu_check.parts import Result

COVERED = (*ONLINE, *OFFLINE)


def listed(scene):
    """The methods that `seedpo train --help` lists."""
    text = " ".join(help_of(scene.place.seedpo, "train", scene.place.environment).split())
    found = re.search(r"--method <TEXT>.*?Range: ([^.\[]+)\.", text)
    if not found:
        raise Failed("`seedpo train --help` does not say which methods there are")
    return [name.strip() for name in found.group(1).split("|")]


def places(scene):
    """Each model's name, its folder, and the settings of an update on it."""
    yield scene.built_in.name, scene.built_in, {"dtype": "f32", "resolution": 64, "gradient-checkpointing": "false"}
    if scene.large:
        yield scene.large_name, scene.large, {"dtype": "bf16", "resolution": scene.large_resolution or 64}


def check(scene):
    """A row on the methods covered, and one for each method and model: seconds and memory."""
    here = listed(scene)
    missing, unknown = sorted(set(here) - set(COVERED)), sorted(set(COVERED) - set(here))
    said = [f"not run: {', '.join(missing)}"] * bool(missing) + [f"not in this seedpo: {', '.join(unknown)}"] * bool(unknown)
    yield Result("update", "methods", "; ".join(said) or f"all {len(here)} of `seedpo train --help`", "", not said)
    for method in here:
        for name, model, own in places(scene) if method in COVERED else []:
            title = f"{method}, {name}, {own['dtype']}"
            try:
                yield row(title, one_update(method, model, scene.place, own))
            except (Failed, OSError) as error:
                yield Result("update", title, f"failed: {error}", "", False)


def row(title, one):
    """The row of an update; it must have changed the adapter by a finite step."""
    on_gpu = one.used.gpu_peak is not None
    used, where = (one.used.gpu_peak, "GPU ") if on_gpu else (one.used.peak, "")
    value = (f"{one.train:.2f} s (rollout {one.rollout:.2f} s, whole command {one.used.wall:.1f} s), {used / MIB:.0f} {where}MiB, "
             f"gradient norm {one.metrics['grad_norm']:.2g}")
    return Result("update", title, value, "", math.isfinite(one.metrics["loss"]) and one.metrics["grad_norm"] > 0)
