#!/usr/bin/env python3
"""Time seedpo against the PyTorch baseline, in alternating turns, at equal settings; `make bench` runs it.

    .venv/bin/python python/bench.py --model assets/emoji-sd --update docs/performance.md
    .venv/bin/python python/bench.py --sd15 --update docs/performance.md

Both sides get the same folder, prompts, steps, K, batch, LoRA rank, dtype and thread count. Each turn is a fresh process
whose first iteration warms up and is not counted. Printed: medians of seconds per iteration (loading excluded), of its
parts, of CPU seconds, and of peak memory (ru_maxrss of the process), with their ratios. `--update FILE` also writes the
tables between the markers in that file. SPO keeps every pair that is not tied (threshold 0), so that both sides train on as many.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROMPTS = ("red apple", "cat face", "bicycle", "rainbow", "rocket", "snowman", "guitar", "sunflower")
PARTS = ("rollout", "judge", "train")


def run_measured(command, log):
    """Run a command; its CPU seconds, wall seconds and peak resident bytes. Stops with its last lines if it fails."""
    began = time.perf_counter()
    with open(log, "wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        tail = "\n".join(Path(log).read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"bench: this command failed:\n  {' '.join(map(str, command))}\n{tail}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": time.perf_counter() - began, "peak": usage.ru_maxrss * 1024}


def run_baseline(case, scratch):
    """Iterations of the PyTorch side as a list of {rollout, judge, train, pairs}, and what the process used."""
    out = scratch / "baseline.json"
    command = [sys.executable, HERE / "baseline", "--model", case["model"], "--method", case["method"],
               "--prompts", case["prompts_file"], "--batch", case["prompts"], "--train-batch", case["train_batch"],
               "--steps", case["steps"], "--candidates", case["candidates"], "--divert-start-step", case["divert"],
               "--threshold", 0, "--rank", case["rank"], "--dtype", case["dtype"], "--threads", case["threads"],
               "--iterations", case["iterations"], "--seed", 1, "--json", out]
    if case["resolution"]:
        command += ["--resolution", case["resolution"]]
    used = run_measured([str(c) for c in command], scratch / "baseline.log")
    done = json.loads(out.read_text())["iterations"]
    used["counted_cpu"] = sum(one["cpu_seconds"] for one in done[1:])
    return [{part: one[f"{part}_seconds"] for part in PARTS} | {"pairs": one["pairs"]} for one in done], used


def run_seedpo(case, scratch):
    """The same for `seedpo train`; an iteration's seconds are summed over its updates."""
    runs = Path(tempfile.mkdtemp(dir=scratch))
    settings = {
        "model": case["model"], "method": case["method"], "prompts-file": case["prompts_file"], "judge": "jpeg-compressibility",
        "output-dir": runs, "name": "bench", "steps": case["steps"], "candidates": case["candidates"],
        "divert-start-step": case["divert"], "threshold": 0, "prompts-per-iteration": case["prompts"],
        "rollout-batch-size": case["prompts"], "train-batch-size": case["train_batch"], "rank": case["rank"],
        "dtype": case["dtype"], "threads": case["threads"], "device": "cpu", "num-train-epochs": case["iterations"],
        "beta": {"d3po": 0.1, "spo": 10}[case["method"]], "learning-rate": {"d3po": 3e-5, "spo": 6e-5}[case["method"]],
        "train-micro-batch-size": case["at_once"], "validation-steps": 0, "checkpointing-steps": 10**6, "seed": 1,
    }
    if case["resolution"]:
        settings["resolution"] = case["resolution"]
    command = [case["seedpo"], "train", "--quiet", *(f"--{key}={value}" for key, value in settings.items())]
    used = run_measured([str(c) for c in command], scratch / "seedpo.log")
    lines = [json.loads(line) for line in (runs / "bench/metrics.jsonl").read_text().splitlines()]
    iterations = {}
    for line in lines:
        if line["kind"] == "update":
            one = iterations.setdefault(line["iteration"], {part: 0.0 for part in PARTS} | {"pairs": line["pairs_kept"]})
            for part in PARTS:
                one[part] += line[f"seconds_{part}"]
    if len(iterations) < case["iterations"]:
        sys.exit(f"bench: in {case['iterations'] - len(iterations)} of {case['iterations']} iterations every pair was tied, "
                 "so seedpo had nothing to train on; use a model whose pictures differ, or more prompts.")
    return [iterations[key] for key in sorted(iterations)], used


def median_of(runs, first_cpu):
    """Medians over all counted iterations of all turns. A side that does not time its own CPU has a process of one
    iteration, `first_cpu`, subtracted: that leaves what the counted iterations used."""
    counted = [one for iterations, _ in runs for one in iterations]
    cpu = statistics.median(used.get("counted_cpu", used["cpu"] - first_cpu) / len(iterations) for iterations, used in runs)
    medians = {part: statistics.median(one[part] for one in counted) for part in PARTS}
    totals = [sum(one[part] for part in PARTS) for one in counted]
    return medians | {"total": statistics.median(totals), "low": min(totals), "high": max(totals), "cpu": cpu,
                      "pairs": statistics.median(one["pairs"] for one in counted),
                      "peak": statistics.median(used["peak"] for _, used in runs)}


def compare(case, turns, scratch):
    """Both sides in turns (the order swaps each time); their medians."""
    sides = {"pytorch": run_baseline, "seedpo": run_seedpo}
    runs = {name: [] for name in sides}
    first_cpu = run_seedpo(case | {"iterations": 1}, scratch)[1]["cpu"]
    for turn in range(turns):
        for name in sorted(sides, reverse=turn % 2 == 1):
            iterations, used = sides[name](case, scratch)
            # The first iteration pays for allocations and kernel choice.
            runs[name].append((iterations[1:], used))
            seconds = ", ".join(f"{sum(one[p] for p in PARTS):.2f}" for one in iterations)
            print(f"  {case['title']}, turn {turn + 1}, {name}: {seconds} s; in all {used['wall']:.1f} s, CPU {used['cpu']:.1f} s; "
                  f"{used['peak'] / 2**20:.0f} MiB; load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return {name: median_of(list_of_runs, first_cpu) for name, list_of_runs in runs.items()}


def table(results):
    """The comparison as a markdown table; ratios are PyTorch over seedpo, so above 1 favours seedpo."""
    rows = ["| case | | rollout s | judge s | train s | **iteration s** (range) | CPU s | pairs | **peak MiB** |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for case, sides in results:
        for name, m in sides.items():
            rows.append(f"| {case['title']} | {name} | {m['rollout']:.2f} | {m['judge']:.2f} | {m['train']:.2f} | "
                        f"**{m['total']:.2f}** ({m['low']:.2f} to {m['high']:.2f}) | {m['cpu']:.2f} | {m['pairs']:.0f} | "
                        f"**{m['peak'] / 2**20:.0f}** |")
        a, b = sides["pytorch"], sides["seedpo"]
        ratio = {key: f"{a[key] / b[key]:.2f}" if b[key] > 0 else "" for key in (*PARTS, "total", "cpu", "peak")}
        rows.append(f"| | ratio | {ratio['rollout']} | {ratio['judge']} | {ratio['train']} | **{ratio['total']}** | "
                    f"{ratio['cpu']} | | **{ratio['peak']}** |")
    return "\n".join(rows)


def output_of(*command):
    run = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, stdin=subprocess.DEVNULL)
    return run.stdout.strip() if run.returncode == 0 else "unknown"


def machine(load):
    """What the numbers were measured on."""
    import diffusers
    import peft
    import torch

    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    model = names[0] if names else platform.processor() or platform.machine()
    extra = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in cpuinfo]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no", "crates", "python")
    dirty = " with uncommitted changes" if changed else ""
    return (f"{datetime.date.today()}, commit {output_of('git', 'rev-parse', '--short=10', 'HEAD')}{dirty}; {model}, "
            f"{os.cpu_count()} cores ({', '.join(extra) or 'no AVX-512'}), {memory:.0f} GiB, {platform.system()}; "
            f"torch {torch.__version__}, diffusers {diffusers.__version__}, peft {peft.__version__}; "
            f"load average before: {load:.1f}.")


def update(path, name, text):
    """Put the text between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    page = path.read_text(encoding="utf-8")
    if begin not in page or end not in page:
        sys.exit(f"bench: {path} lacks the markers {begin} and {end}")
    head, rest = page.split(begin, 1)
    path.write_text(head + begin + "\n" + text + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")


def describe(chosen, case):
    return (f"{case['prompts']} prompts per iteration, {case['steps']} steps, guidance 5, eta 1, LoRA rank {case['rank']}, "
            f"{case['dtype']}, {case['threads']} threads; SPO: K = {case['candidates']}, branching from step {case['divert']}; "
            f"D3PO: seedpo runs up to {case['at_once']} steps of a pair in one pass, for the same update; "
            f"{chosen.turns} turns of {chosen.iterations} counted iterations after one to warm up.")


def bench(chosen, scratch):
    prompts_file = scratch / "prompts.txt"
    prompts_file.write_text("\n".join(PROMPTS[n % len(PROMPTS)] for n in range(chosen.prompts)) + "\n", encoding="utf-8")
    common = {"model": chosen.model, "prompts_file": prompts_file, "prompts": chosen.prompts, "steps": chosen.steps,
              "candidates": chosen.candidates, "divert": min(4, chosen.steps - 1), "rank": 4, "dtype": chosen.dtype,
              "threads": chosen.threads, "iterations": chosen.iterations + 1, "resolution": chosen.resolution,
              "seedpo": chosen.seedpo, "at_once": 10}
    cases = {
        "spo": {"title": "SPO", "method": "spo", "train_batch": 10},
        "d3po": {"title": "D3PO, 1 pair per update", "method": "d3po", "train_batch": 1},
        "d3po-batch": {"title": f"D3PO, {chosen.prompts} pairs per update", "method": "d3po", "train_batch": chosen.prompts},
    }
    results = [(case := common | cases[key], compare(case, chosen.turns, scratch)) for key in chosen.cases]
    return table(results) + "\n\n" + describe(chosen, common)


def bench_sd15(chosen, scratch):
    """One SPO update on the 860 M-parameter U-Net at 256 x 256: does it run here, how long, how much memory."""
    folder = HERE.parent / "target/models/sd15"
    subprocess.run([sys.executable, HERE / "make_models.py", "sd15", folder, "--dtype", "f16", "--keep"], check=True)
    prompts_file = scratch / "prompts.txt"
    prompts_file.write_text("red apple\n", encoding="utf-8")
    rows = ["| base dtype | | rollout s | judge s | train s | whole command s | pairs | peak MiB |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for dtype in chosen.dtypes:
        case = {"model": folder, "prompts_file": prompts_file, "prompts": 1, "steps": 5, "candidates": 2, "divert": 3, "rank": 4,
                "dtype": dtype, "threads": chosen.threads, "iterations": 1, "resolution": 256, "seedpo": chosen.seedpo,
                "at_once": 1, "title": "SD 1.5 size", "method": "spo", "train_batch": 10}
        for name, side in (("seedpo", run_seedpo), ("pytorch", run_baseline))[:2 if chosen.with_baseline else 1]:
            (one, *_), used = side(case, scratch)
            rows.append(f"| {dtype} | {name} | {one['rollout']:.1f} | {one['judge']:.1f} | {one['train']:.1f} | "
                        f"{used['wall']:.1f} | {one['pairs']} | {used['peak'] / 2**20:.0f} |")
            print(rows[-1], file=sys.stderr, flush=True)
    return "\n".join(rows) + (f"\n\nOne iteration (one update) of SPO with one prompt at 256 x 256, 5 steps, K = 2, branching "
                              f"from step 3, guidance 5, LoRA rank 4, {chosen.threads} threads, random weights of exactly "
                              "Stable Diffusion 1.5's configuration, stored as f16; loading is in the whole command only.")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", type=Path, default=Path("assets/emoji-sd"))
    options.add_argument("--seedpo", type=Path, default=HERE.parent / "target/release/seedpo", help="the binary")
    options.add_argument("--cases", nargs="+", default=["spo", "d3po", "d3po-batch"], choices=("spo", "d3po", "d3po-batch"))
    options.add_argument("--prompts", type=int, default=4, help="prompts per iteration, sampled as one batch")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--candidates", type=int, default=4)
    options.add_argument("--resolution", type=int)
    options.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--turns", type=int, default=3, help="processes per side, in alternation")
    options.add_argument("--iterations", type=int, default=2, help="counted iterations per process")
    options.add_argument("--update", type=Path, help="also write the table into this page, between its markers")
    options.add_argument("--sd15", action="store_true", help="one update at Stable Diffusion 1.5's size instead")
    options.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=("f32", "bf16"), help="of --sd15")
    options.add_argument("--with-baseline", action="store_true", help="run the PyTorch side too, with --sd15")
    chosen = options.parse_args()
    if not chosen.seedpo.is_file():
        sys.exit(f"bench: {chosen.seedpo} is not there; run `make build`.")
    if not chosen.sd15 and not (chosen.model / "model_index.json").is_file():
        sys.exit(f"bench: {chosen.model} is not a diffusers folder.")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="seedpo-bench-") as scratch:
        text = (bench_sd15 if chosen.sd15 else bench)(chosen, Path(scratch))
    text += f"\n\nMeasured {machine(load)}"
    print(text)
    if chosen.update:
        update(chosen.update, "sd15" if chosen.sd15 else "emoji", text)


if __name__ == "__main__":
    main()
