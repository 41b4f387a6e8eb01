"""Pictures a second and peak memory, per judge: `seedpo score` beside the Python reference, same random weights, same pictures, in turns.

    pip install --no-deps open_clip_torch torchvision ftfy regex wcwidth timm    # beside python/requirements.txt
    .venv/bin/python python/judge_bench.py [--judge NAME ...] [--pictures 32] [--prompts 3] [--rounds 3] [--dtype f32 bf16]

Both sides read PNG files. The reference takes one picture and prompt at a time, as the judges' own packages do in their examples.
Every picture has a prompt of its own unless --prompts says how many there are. Loading is left out: for seedpo a run over one
picture is taken off a run over all, after one that reads the weights from the disk. Of several rounds the least counts, on both
sides. Seconds are the clock's; the factor is given by CPU time, too, which a busy machine disturbs less. Judges without weights
are measured on more pictures, against Pillow and NumPy. The machine should have nothing else to do.
"""

import argparse
import gc
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python"))
from judge_parity import JUDGES  # noqa: E402
from formula import picture  # noqa: E402

SUBJECTS = ["a red apple on a wooden table", "two cats, sitting on a mat", "an astronaut riding a horse, detailed"]


class Weightless:
    """A judge that is a formula; as the public codes compute it (`ddpo-pytorch`'s rewards, Hasler and Süsstrunk's M)."""

    def __init__(self, formula):
        self.formula = formula

    def score(self, image, _prompt):
        return self.formula(image)


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    return -buffer.tell() / 1000


def colourfulness(image):
    r, g, b = np.moveaxis(image.astype(np.float64), -1, 0)
    rg, yb = r - g, (r + g) / 2 - b
    return np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())


def chroma(image):
    return float((image.max(-1).astype(np.float64) - image.min(-1)).mean() / 255 * 100)


WEIGHTLESS = {"jpeg-compressibility": jpeg, "colourfulness": colourfulness, "chroma": chroma}


def seedpo(binary: str, name: str, folder: Path | None, pictures: Path, prompts: Path, dtype: str) -> tuple[np.ndarray, float]:
    """Seconds by the clock and of CPU time by thread, and peak resident MiB."""
    judge = f"{name}={folder}" if folder else name
    command = [binary, "-q", "score", "--judge", judge, str(pictures), "--prompts", str(prompts), "--dtype", dtype]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak, ended = 0.0, 0
    # Not getrusage's peak: that counts this process, too, until the other program is started.
    while not ended:
        peak = max(peak, high_water(process.pid))
        time.sleep(0.002)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    if status != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {os.waitstatus_to_exitcode(status)}")
    clock = time.perf_counter() - started
    return np.array([clock, (usage.ru_utime + usage.ru_stime) / torch.get_num_threads()]), peak


def high_water(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0.0)


def reference(judge, pictures: Path, prompts) -> np.ndarray:
    """Seconds by the clock and of CPU time by thread."""
    clock, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        for path, prompt in zip(sorted(pictures.iterdir()), prompts):
            judge.score(np.array(Image.open(path)), prompt)
    return np.array([time.perf_counter() - clock, (time.process_time() - cpu) / torch.get_num_threads()])


def main() -> None:
    parser = argparse.ArgumentParser()
    every = [*(name for name in JUDGES if not name.startswith("hpsv2.1")), *WEIGHTLESS]
    parser.add_argument("--judge", nargs="*", default=every, choices=[*JUDGES, *WEIGHTLESS])
    parser.add_argument("--binary", default=str(ROOT / "target/release/seedpo"))
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=None, help="different prompts; one for each picture where not given")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", nargs="*", default=["f32", "bf16"])
    parser.add_argument("--head", default=None)
    args = parser.parse_args()
    print("| judge | dtype | PyTorch, pictures/s | seedpo, pictures/s | factor | by CPU time | seedpo, peak MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in args.judge:
        count = args.pictures * (16 if name in WEIGHTLESS else 1)
        images = [picture(args.size, args.size, seed) for seed in range(count)]
        prompt = lambda at: f"{SUBJECTS[at % len(SUBJECTS)]}, view {at}"
        prompts = [prompt(at % (args.prompts or count)) for at in range(count)]
        with tempfile.TemporaryDirectory() as temporary:
            folder, one, all_ = (Path(temporary) / part for part in ("judge", "one", "all"))
            for part in (folder, one, all_):
                part.mkdir()
            for at, image in enumerate(images):
                Image.fromarray(image).save(all_ / f"{at:03}.png")
            Image.fromarray(images[0]).save(one / "000.png")
            (one.parent / "one.txt").write_text(prompts[0] + "\n")
            (one.parent / "all.txt").write_text("\n".join(prompts) + "\n")
            judge = Weightless(WEIGHTLESS[name]) if name in WEIGHTLESS else JUDGES[name](folder, args)
            dtypes = ["f32"] if name in WEIGHTLESS else args.dtype
            folder = None if name in WEIGHTLESS else folder
            theirs, loads, wholes, peak = [], {dtype: [] for dtype in dtypes}, {dtype: [] for dtype in dtypes}, {}
            for _ in range(args.rounds):
                theirs.append(reference(judge, all_, prompts) / count)
                # After the reference little of the weights is left in memory: the next run reads the disk.
                seedpo(args.binary, name, folder, one, one.parent / "one.txt", dtypes[0])
                for dtype in dtypes:
                    loads[dtype].append(seedpo(args.binary, name, folder, one, one.parent / "one.txt", dtype)[0])
                    whole, peak[dtype] = seedpo(args.binary, name, folder, all_, one.parent / "all.txt", dtype)
                    wholes[dtype].append(whole)
            del judge
            gc.collect()
            base = np.min(theirs, axis=0)
            for dtype in dtypes:
                each = (np.min(wholes[dtype], axis=0) - np.min(loads[dtype], axis=0)) / (count - 1)
                clock, cpu = base / each
                print(f"| {name} | {dtype} | {1 / base[0]:.2f} | {1 / each[0]:.2f} | {clock:.2f} | {cpu:.2f} | {peak[dtype]:.0f} |",
                      flush=True)


if __name__ == "__main__":
    main()
