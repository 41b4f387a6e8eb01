#!/usr/bin/env python3
"""Measure seedpo against the PyTorch baseline, in alternating turns, at equal settings; `make bench` and its kin run it.

    .venv/bin/python python/bench.py emoji --update docs/performance.md
    .venv/bin/python python/bench.py sd15 sd15-512 memory --turns 1

`emoji` is the built-in model; `sd15` and `sd15-512` are a random-weight folder of Stable Diffusion 1.5's size at 256 and
512 pixels; `memory` is one SEE-SPO update of that folder at 512 pixels, with and without the flags that save memory;
`methods` is one update of every method on it at 256 pixels, `sdxl` one at 512 on a folder of Stable Diffusion XL's size, both without
PyTorch.

Both sides get the same folder, prompts, steps, K, pairs per update, LoRA rank, dtype and thread count, and each turn is a
fresh process. Seconds are medians over the counted repetitions and exclude loading, except in the row that measures it;
peak memory is that of the process (ru_maxrss). SPO keeps every pair that is not tied (threshold 0), so that both sides
train on as many. `--update FILE` also writes each table between its markers in that page.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmark import methods, page
from benchmark import work as works
from benchmark.page import Goal
from benchmark.process import Failed, help_of
from benchmark.tensors import write_adapter
from benchmark.work import Place, Work

HERE = Path(__file__).resolve().parent
SD15, SDXL = HERE.parent / "target/models/sd15", HERE.parent / "target/models/sdxl"
SIZES = ("emoji", "sd15", "sd15-512", "memory", "methods", "sdxl")
ROWS = ("sampling", "spo", "spo-checkpointing", "d3po", "d3po-batch", "diffusion-dpo", "start", "default")
GOALS = {"sampling": Goal(1.4, 0.7), "spo": Goal(2.0, 0.5), "spo-checkpointing": Goal(2.0, 0.5), "d3po": Goal(1.5, 0.5),
         "d3po-batch": Goal(1.5, 0.5), "diffusion-dpo": Goal(1.3, 0.5), "start": Goal(5.0), "default": Goal(4.0)}
CHECKPOINTING = ("--gradient-checkpointing",)


def emoji_rows(chosen, adapter):
    """The built-in model, at the published 20 steps and K = 4."""
    base = Work("", "spo", chosen.model, prompts=4, train_batch=10, iterations=chosen.repetitions, warm_up=1, adapter=adapter)
    d3po = replace(base, method="d3po", train_batch=1, seedpo_flags=("--train-micro-batch-size=10",))
    return {
        "sampling": replace(base, title="sampling, 8 pictures", method="sample", prompts=8, iterations=2 * chosen.repetitions),
        "spo": replace(base, title="SPO iteration"),
        "d3po": replace(d3po, title="D3PO iteration, 1 pair per update"),
        "d3po-batch": replace(d3po, title="D3PO iteration, 4 pairs per update", train_batch=4),
        "diffusion-dpo": replace(base, title="Diffusion-DPO update, 4 pairs", method="diffusion-dpo", train_batch=4,
                                 iterations=5 * chosen.repetitions),
        "start": first_update(base),
        "default": replace(base, title="SPO iteration, out of the box", our_dtype=None),
    }


def sd15_rows(adapter, resolution):
    """Stable Diffusion 1.5's size in bf16, few steps; gradients of one pair at a time, so that PyTorch's fit too."""
    small = resolution <= 256
    base = Work("", "spo", SD15, dtype="bf16", our_dtype="bf16", steps=5 if small else 4, divert=3, candidates=2, train_batch=1,
                resolution=resolution, adapter=adapter)
    rows = {
        "sampling": replace(base, title="sampling, 1 picture", method="sample", warm_up=1, steps=4),
        "spo": replace(base, title="SPO iteration"),
        "spo-checkpointing": replace(base, title="SPO iteration, gradient checkpointing", pytorch_flags=CHECKPOINTING,
                                     seedpo_flags=CHECKPOINTING),
        "d3po": replace(base, title="D3PO iteration", method="d3po", steps=4 if small else 2),
        "diffusion-dpo": replace(base, title="Diffusion-DPO update, 1 pair", method="diffusion-dpo", warm_up=1),
        # At 64 pixels nearly all of it is starting and loading.
        "start": first_update(replace(base, resolution=64)),
        "default": replace(base, title="SPO iteration, out of the box", dtype="f32", our_dtype=None),
    }
    if not small:
        # Without it PyTorch's f32 side (two U-Nets and the graph of a pair) is beyond the memory of most desks.
        rows["default"] = replace(rows["default"], title="SPO iteration, out of the box, gradient checkpointing",
                                  pytorch_flags=CHECKPOINTING, seedpo_flags=CHECKPOINTING)
    return rows


def first_update(work):
    """One pair, one update, counted from the start of the process."""
    return replace(work, title="start of the process to first update", prompts=1, steps=2, divert=1, candidates=2, train_batch=1,
                   iterations=1, warm_up=0, first_update=True)


def describe(works_done, place, turns):
    """The settings of a table in a sentence."""
    spo = next((w for w in works_done if w.method == "spo" and not w.first_update), works_done[0])
    d3po = next((w for w in works_done if w.method == "d3po"), None)
    text = (f"{spo.prompts} prompt(s) per iteration, {spo.resolution or 64} × {spo.resolution or 64} pixels, {spo.steps} steps, "
            f"guidance 5, LoRA rank 4, {place.threads} thread(s); SPO: K = {spo.candidates}, branching from step {spo.divert}, "
            f"{spo.train_batch} pair(s) per update")
    if any(w.method == "diffusion-dpo" for w in works_done):
        text += "; Diffusion-DPO: new pairs in every update, read and encoded within it, no guidance"
    if d3po:
        joined = ", seedpo up to 10 of a pair's steps in one pass for the same update" if d3po.seedpo_flags else ""
        text += f"; D3PO: {d3po.steps} steps{joined}"
    return (f"{text}; {turns} turn(s) of {spo.iterations} counted iteration(s)"
            f"{' after one to warm up' if spo.warm_up else ', none to warm up'}.")


def compare(size, chosen, place):
    """The tables of one size as text; whether every row ran."""
    adapter = place.scratch / f"{size}-lora.safetensors"
    write_adapter(chosen.model if size == "emoji" else SD15, adapter)
    rows = emoji_rows(chosen, adapter) if size == "emoji" else sd15_rows(adapter, 512 if size == "sd15-512" else 256)
    wanted = [(work, GOALS[key]) for key, work in rows.items() if key in (chosen.rows or rows)]
    if not wanted:
        sys.exit(f"bench: {size} has no row among {', '.join(chosen.rows)}; it has {', '.join(rows)}")
    turns = chosen.turns or (3 if size == "emoji" else 1)
    done = page.measure(wanted, turns, place)
    tables = [page.speed_table(done), page.parts_table(done), describe([work for work, _ in wanted], place, turns)]
    return "\n\n".join(filter(None, tables)), not any(row.failure for row in done)


def memory(chosen, place):
    """Peak memory of one SEE-SPO update at 512 pixels with K = 4, by what is switched on; whether every row ran."""
    update = Work("SEE-SPO update", "spo", SD15, dtype="bf16", our_dtype="bf16", steps=4, divert=2, train_batch=2, resolution=512)
    known = help_of(place.seedpo, "train", place.environment)
    slicing = ("--vae-slicing",) if "--vae-slicing" in known else ()
    see, one = ("--entropy-gamma=0.5",), ("--train-micro-batch-size=1",)
    rows = [("seedpo, no economies", works.seedpo, see),
            ("seedpo, gradient checkpointing", works.seedpo, (*see, *CHECKPOINTING)),
            ("seedpo, gradient checkpointing, one pair at a time" + (", VAE slicing" if slicing else ""),
             works.seedpo, (*see, *CHECKPOINTING, *one, *slicing)),
            ("PyTorch, one pair at a time", works.pytorch, ("--micro-batch", "1")),
            ("PyTorch, gradient checkpointing, one pair at a time, VAE slicing", works.pytorch,
             ("--micro-batch", "1", *CHECKPOINTING, "--vae-slicing"))]
    lines, good = ["| | peak MiB | rollout s | judge s | train s |", "| --- | --- | --- | --- | --- |"], True
    for title, side, flags in rows:
        try:
            measured = side(replace(update, seedpo_flags=flags, pytorch_flags=flags), place)
            parts = " | ".join(f"{measured.part(part):.1f}" for part in works.PARTS)
            lines.append(f"| {title} | **{measured.used.peak / page.MIB:.0f}** | {parts} |")
        except (Failed, ValueError) as error:
            good = False
            lines.append(f"| {title} | did not run: {str(error).splitlines()[0]} | | | |")
            page.say(str(error))
        page.say(lines[-1])
    lines += ["", f"One update: 1 prompt, K = 4, {update.steps} steps, branching from step {update.divert} (2 pairs), guidance 5, "
                  f"γ = 0.5, LoRA rank 4, 512 × 512, bf16, {place.threads} thread(s), once each. PyTorch runs plain SPO, as γ adds "
                  "no pass, and takes one pair at a time in both rows. Goal with all economies: at most 7168 MiB."]
    return "\n".join(lines), good


def check(chosen):
    """What can be known to be wrong before anything runs."""
    if not chosen.seedpo.is_file():
        sys.exit(f"bench: {chosen.seedpo} is not there; run `make build`, or name a binary with --seedpo.")
    for size in chosen.sizes if chosen.update else []:
        page.parts_of(chosen.update, size)
    if "emoji" in chosen.sizes and not (chosen.model / "model_index.json").is_file():
        sys.exit(f"bench: {chosen.model} is not a diffusers folder.")
    for folder, sizes in ((SD15, set(chosen.sizes) - {"emoji", "sdxl"}), (SDXL, {"sdxl"} & set(chosen.sizes))):
        if sizes and not (folder / "model_index.json").is_file():
            made = subprocess.run([sys.executable, HERE / "make_models.py", folder.name, folder, "--dtype", "f16"])
            if made.returncode != 0:
                sys.exit(f"bench: {folder} could not be written; see above.")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("sizes", nargs="*", default=["emoji"], choices=SIZES, metavar="SIZE", help="of: " + ", ".join(SIZES))
    options.add_argument("--rows", nargs="+", choices=ROWS, help="only these rows")
    options.add_argument("--model", type=Path, default=Path("assets/emoji-sd"), help="the folder that `emoji` measures")
    options.add_argument("--seedpo", type=Path, default=HERE.parent / "target/release/seedpo", help="the binary")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--turns", type=int, help="processes per side, in alternation (default: emoji 3, others 1)")
    options.add_argument("--repetitions", type=int, default=2, help="emoji: counted iterations per process; more of the short ones")
    options.add_argument("--update", type=Path, help="also write the tables into this page, between their markers")
    chosen = options.parse_args()
    check(chosen)
    all_good = True
    with tempfile.TemporaryDirectory(prefix="seedpo-bench-") as scratch:
        place = Place(chosen.seedpo.resolve(), sys.executable, Path(scratch), threads=chosen.threads)
        for size in chosen.sizes:
            load = os.getloadavg()[0]
            if size == "methods":
                text, good = methods.table(SD15, place)
            elif size == "sdxl":
                text, good = methods.table(SDXL, place, ("spo", "diffusion-dpo"), resolution=512)
            else:
                text, good = memory(chosen, place) if size == "memory" else compare(size, chosen, place)
            text += f"\n\nMeasured {page.machine(load)}"
            print(text, flush=True)
            all_good &= good
            if chosen.update:
                page.update(chosen.update, size, text)
    sys.exit(0 if all_good else 1)


if __name__ == "__main__":
    main()
