"""Pictures a second and peak memory, per judge: `seedpo score` beside the Python reference, same random weights, same pictures, in turns.

    pip install --no-deps open_clip_torch torchvision ftfy regex wcwidth timm    # beside python/requirements.txt
    .venv/bin/python python/judge_bench.py [--judge NAME ...] [--pictures 32] [--rounds 3] [--dtype f32 bf16]

The reference takes one picture and prompt at a time, as the judges' own packages do in their examples. Loading is left out on both sides: for seedpo the time of a run over one picture is taken off.
The machine should have nothing else to do.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))
from judge_parity import JUDGES  # noqa: E402
from formula import picture  # noqa: E402

PROMPTS = ["a red apple on a wooden table", "two cats, sitting on a mat", "an astronaut riding a horse, detailed"]


def seedpo(binary: str, name: str, folder: Path, pictures: Path, prompts: Path, dtype: str) -> tuple[float, float]:
    """Seconds, and peak resident MiB."""
    command = [binary, "-q", "score", "--judge", f"{name}={folder}", str(pictures), "--prompts", str(prompts), "--dtype", dtype]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0
    # Not getrusage's: that counts this process, too, until the other program is started.
    while process.poll() is None:
        peak = max(peak, high_water(process.pid))
        time.sleep(0.002)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.perf_counter() - started, peak


def high_water(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0)


def reference(judge, images, prompts) -> float:
    started = time.perf_counter()
    with torch.no_grad():
        for image, prompt in zip(images, prompts):
            judge.score(image, prompt)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--judge", nargs="*", default=["pickscore", "hpsv2", "imagereward", "aesthetic", "clipscore"])
    parser.add_argument("--binary", default=str(ROOT / "target/release/seedpo"))
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--head", default=None)
    args = parser.parse_args()
    images = [picture(args.size, args.size, seed) for seed in range(args.pictures)]
    prompts = [PROMPTS[at % len(PROMPTS)] for at in range(args.pictures)]
    print("| judge | dtype | PyTorch, pictures/s | seedpo, pictures/s | factor | seedpo, peak MiB |\n| --- | --- | --- | --- | --- | --- |")
    for name in args.judge:
        with tempfile.TemporaryDirectory() as temporary:
            folder, one, all_ = (Path(temporary) / part for part in ("judge", "one", "all"))
            for part in (folder, one, all_):
                part.mkdir()
            for at, image in enumerate(images):
                Image.fromarray(image).save(all_ / f"{at:03}.png")
            Image.fromarray(images[0]).save(one / "000.png")
            (one.parent / "one.txt").write_text(prompts[0] + "\n")
            (one.parent / "all.txt").write_text("\n".join(prompts) + "\n")
            judge = JUDGES[name](folder, args)
            theirs, ours, peak = [], {dtype: [] for dtype in args.dtype}, {}
            for _ in range(args.rounds):
                theirs.append(args.pictures / reference(judge, images, prompts))
                for dtype in args.dtype:
                    load, _ = seedpo(args.binary, name, folder, one, one.parent / "one.txt", dtype)
                    whole, peak[dtype] = seedpo(args.binary, name, folder, all_, one.parent / "all.txt", dtype)
                    ours[dtype].append((args.pictures - 1) / max(whole - load, 1e-9))
            del judge
            gc.collect()
            base = statistics.median(theirs)
            for dtype in args.dtype:
                speed = statistics.median(ours[dtype])
                print(f"| {name} | {dtype} | {base:.2f} | {speed:.2f} | {speed / base:.2f} | {peak[dtype]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
