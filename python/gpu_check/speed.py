"""The SPO iteration against the PyTorch baseline on the same device, and the training step against the matrix rate."""

import json
import os
import statistics
import subprocess
from dataclasses import replace

from benchmark import page
from benchmark.page import Goal
from benchmark.process import Failed
from benchmark.work import Work, seedpo
from gpu_check.parts import REPOSITORY, Result

SPEED_GOAL = Goal(speed=2.0, memory=0.5)
SHARE_GOAL = 0.45
TERA = 1e12


def card(scene):
    """The device's matrix rate, and the U-Net's operations where diffusers is there to count them."""
    script = REPOSITORY / "python/gpu_check/card.py"
    plain = [scene.torch_python, script, scene.place.device, "512" if scene.dry else "8192"]
    config = scene.large / "unet/config.json"
    side = scene.large_resolution // 8 if scene.large_resolution else json.loads(config.read_text())["sample_size"]
    environment = os.environ | scene.place.environment
    for command in ([*plain, config, str(side)], plain):
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
    raise Failed(f"torch's Python could not measure the device: {done.stderr.strip().splitlines()[-1]}")


def train_rate(side, found):
    """FLOP/s of an SPO training phase in which a pair's two sides share their passes, guidance doubling each: forward and
    backward of the policy, forward of the reference. What recomputing or the optimizer take is not counted as work."""
    per_pair = 2 * (2 * found["forward"] + found["backward"])
    return statistics.median(pairs * per_pair / part["train"]
                             for one in side for pairs, part in zip(one.pairs, one.parts))


def spo(scene):
    """The iteration that is measured: K = 4, all steps from the fourth on branch, four pairs per update."""
    work = Work(f"SPO iteration, {scene.large_name}", "spo", scene.large, dtype="bf16", our_dtype="bf16", prompts=1, steps=20,
                train_batch=4, resolution=scene.large_resolution, iterations=2, warm_up=1)
    return replace(work, steps=5, iterations=1) if scene.dry else work


def held(scene, what, value, limit, good):
    """A row with a goal, which a dry run has none of."""
    return Result("speed", what, value) if scene.dry else Result("speed", what, value, limit, good)


def comparison(scene, row):
    """Rows of time and memory."""
    ours, theirs = row.median(row.ours), row.median(row.theirs)
    yield held(scene, row.work.title, f"{theirs / ours:.2f} times faster (PyTorch {theirs:.2f} s, seedpo {ours:.2f} s)",
               f"≥ {SPEED_GOAL.speed:g}", theirs / ours >= SPEED_GOAL.speed)
    ours, theirs = (row.peak(side, gpu=scene.place.gpu is not None) for side in (row.ours, row.theirs))
    yield held(scene, f"{row.work.title}, peak memory",
               f"{ours / theirs:.2f} of PyTorch's ({theirs / page.MIB:.0f} MiB, seedpo {ours / page.MIB:.0f} MiB)",
               f"≤ {SPEED_GOAL.memory:g}", ours / theirs <= SPEED_GOAL.memory)


def check(scene):
    """Rows of the speed part; without torch's Python, seedpo's own seconds alone."""
    if not scene.large:
        yield Result("speed", "SPO iteration", "not run: no folder of Stable Diffusion 1.5's size (--sd15)", "", False)
        return
    work, found = spo(scene), {}
    if scene.torch_python:
        try:
            found = card(scene)
            yield Result("speed", f"bf16 matrix product on {found.get('card', scene.place.device)}",
                         f"{found['matrix_rate'] / TERA:.3g} TFLOP/s")
        except Failed as error:
            yield Result("speed", "bf16 matrix product", f"failed: {error}", "", False)
    if "forward" in found:
        [row] = page.measure([(work, SPEED_GOAL)], 1, replace(scene.place, python=scene.torch_python))
        ours = row.ours
        if row.failure:
            yield Result("speed", work.title, f"failed: {row.failure}", "", False)
        else:
            yield from comparison(scene, row)
    else:
        yield Result("speed", "PyTorch baseline", "not run: needs a Python with torch, diffusers and peft (--python, --pack)", "", False)
        try:
            ours = [seedpo(work, scene.place)]
            yield Result("speed", work.title, f"{statistics.median(ours[0].seconds):.2f} s")
        except (Failed, ValueError) as error:
            ours = []
            yield Result("speed", work.title, f"failed: {error}", "", False)
    if ours and "forward" in found:
        rate, whole = train_rate(ours, found), found["matrix_rate"]
        yield held(scene, "training step of the U-Net", f"{rate / TERA:.3g} TFLOP/s, {rate / whole:.0%} of the matrix rate",
                   f"≥ {SHARE_GOAL:.0%}", rate >= SHARE_GOAL * whole)
