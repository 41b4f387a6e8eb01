"""scripts/gpu-check: the arguments, the order of the parts, the table."""

import argparse
import datetime
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmark import page
from benchmark.process import Failed
from benchmark.work import Place
from gpu_check import parity, setting, speed, updates
from gpu_check.parts import REPOSITORY, Result, Scene

PARTS = {"parity": parity.check, "updates": updates.check, "speed": speed.check}
EXAMPLES = """
Parts: parity (every stage against the CPU in f32, TF32 off, and in bf16, on the built-in model and a small SDXL), updates
(one update of each method, on the built-in model and at Stable Diffusion 1.5's size at 512 pixels in bf16), speed (an SPO
iteration against the PyTorch baseline; the training step against the card's matrix rate).

  scripts/gpu-check                                      everything, with target/release/seedpo
  scripts/gpu-check --pack DIR                           on a machine with network: gather what another machine lacks
  scripts/gpu-check --from DIR --json gpu.json           on the GPU machine, with the binary and the files of DIR
  scripts/gpu-check --show gpu.json --update docs/performance.md
  scripts/gpu-check --device cpu --dry                   the same code on the CPU in small, to try it

Exit codes: 0 every row holds; 1 a row does not; 2 could not run, for example where there is no CUDA GPU."""


def arguments():
    options = argparse.ArgumentParser(prog="gpu-check", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
                                      description="Check seedpo on this machine's CUDA GPU, in one table. Needs no Rust.")
    options.add_argument("--seedpo", type=Path, help="the binary (default: that of --from, else target/release/seedpo)")
    options.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu with --dry")
    options.add_argument("--dry", action="store_true", help="try the check itself, on the CPU and in small")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--python", help="a Python with torch (default: this one, or python3); optional")
    options.add_argument("--sd15", type=Path, help="a folder of Stable Diffusion 1.5's size (default: target/models/sd15, "
                                                   "written with random weights if need be)")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--json", type=Path, help="also write everything to this file")
    options.add_argument("--pack", type=Path, metavar="DIR", help="gather what a machine without network lacks, and stop")
    options.add_argument("--from", type=Path, metavar="DIR", dest="carried", help="a folder that --pack made")
    options.add_argument("--show", type=Path, metavar="JSON", help="print the table of an earlier run, and stop")
    options.add_argument("--update", type=Path, help="also write the table into this page, between its markers")
    chosen = options.parse_args()
    if chosen.dry != (chosen.device == "cpu"):
        options.error("--dry and --device cpu go together: the check is of a GPU")
    chosen.seedpo = chosen.seedpo or (chosen.carried / "seedpo" if chosen.carried else REPOSITORY / "target/release/seedpo")
    return chosen


def table(found):
    """The rows as a markdown table, with what they were measured on."""

    def mark(row):
        return {True: "ok", False: "**missed**" if row["limit"] else "**FAILED**", None: ""}[row["good"]]

    rows = ["| part | what | result | limit | |", "| --- | --- | --- | --- | --- |"]
    for row in found["rows"]:
        rows.append(f"| {row['part']} | {row['what']} | {row['value'].splitlines()[0]} | {row['limit']} | {mark(row)} |")
    return "\n".join(rows) + f"\n\n{found['measured']}"


def show(found, page_file):
    text = table(found)
    print(text)
    if page_file:
        page.update(page_file, "gpu", text)


def prepare(chosen, scratch):
    """The scene of the check. Raises Failed with what is missing."""
    if not chosen.seedpo.is_file():
        raise Failed(f"{chosen.seedpo} is not there; run `make build`, or carry a binary and name it with --seedpo")
    gpu = None if chosen.dry else setting.gpu_name()
    if not gpu and not chosen.dry:
        raise Failed("no CUDA GPU on this machine (nvidia-smi shows none); `--device cpu --dry` tries the check itself")
    python = setting.find_python(chosen.python)
    environment = setting.libraries(python, cuda=not chosen.dry)
    if chosen.carried:
        environment |= setting.unpack(chosen.carried, scratch)
    built_in, missing = REPOSITORY / "assets/emoji-sd", ""
    if chosen.dry:
        large = built_in
    else:
        large, missing = setting.large_folder(chosen.sd15, python, chosen.carried, environment)
    place = Place(chosen.seedpo.resolve(), python or "", scratch, chosen.device, chosen.threads, environment)
    scene = Scene(place, built_in, REPOSITORY / "crates/model/tests/fixtures/sdxl", large, python, chosen.dry)
    return scene, gpu or "CPU, dry run", missing


def check(chosen, scratch):
    """Everything that was asked for, as the JSON holds it."""
    scene, device, missing = prepare(chosen, scratch)
    load, rows = os.getloadavg()[0], []
    if missing:
        rows.append(Result("update", "Stable Diffusion 1.5's size", f"not run: {missing}", "", False))
    for part in chosen.parts:
        try:
            for row in PARTS[part](scene):
                rows.append(row)
                page.say(f"{row.part}: {row.what}: {row.value} {row.limit} {'' if row.good is not False else 'NOT OK'}")
        except Failed as error:
            rows.append(Result(part, "", f"failed: {error}", "", False))
    kind = "Dry run, no figures of a GPU:" if chosen.dry else "Measured"
    measured = (f"{kind} {datetime.datetime.now():%Y-%m-%d %H:%M}, {device}; "
                f"commit {page.output_of('git', 'rev-parse', '--short=10', 'HEAD')}; load average {load:.1f} before.")
    return {"measured": measured, "device": device, "rows": [asdict(row) for row in rows]}


def main():
    chosen = arguments()
    if chosen.update:
        page.parts_of(chosen.update, "gpu")
    try:
        if chosen.pack:
            size = setting.pack(chosen.pack, chosen.seedpo)
            print(f"gpu-check: {chosen.pack}: {size / page.MIB:.0f} MiB")
            return
        if chosen.show:
            return show(json.loads(chosen.show.read_text(encoding="utf-8")), chosen.update)
        with tempfile.TemporaryDirectory(prefix="seedpo-gpu-check-") as scratch:
            found = check(chosen, Path(scratch))
    except (Failed, OSError) as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        sys.exit(2)
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    show(found, chosen.update)
    sys.exit(1 if any(row["good"] is False for row in found["rows"]) else 0)
