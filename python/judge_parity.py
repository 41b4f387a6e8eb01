"""Every judge at its published width, random weights, against its reference implementation: `seedpo probe` beside PyTorch.

    pip install --no-deps open_clip_torch torchvision ftfy regex wcwidth timm    # beside python/requirements.txt
    .venv/bin/python python/judge_parity.py [--judge NAME ...] [--head sac+logos+ava1-l14-linearMSE.pth] [--bf16]

One model is in memory at a time (up to 6 GB, as much on disk). Prints, per judge, over pictures of odd sizes, in f32 and
(with --bf16) in bf16: the largest error relative to the largest score, the largest of a score relative to itself (random weights
give scores near 0, too), and the largest absolute one. Fails where the first is above 1e-4 in f32.
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python/fixtures"))
import reference_judges as reference  # noqa: E402
from formula import picture  # noqa: E402

PICTURES = [(512, 512, 0), (337, 501, 1), (768, 512, 2), (97, 640, 3)]
PROMPTS = ["a red apple on a wooden table", "two cats, sitting on a mat!", "don't panic: 42 towels", "an astronaut " * 40]
STEPS = [0, 251, 501, 951]
LIMIT = 1e-4


def randomise(module: torch.nn.Module) -> None:
    """Weights of a trained network's size: matrices of unit gain, norms near 1, logit scale 100."""
    generator = torch.Generator().manual_seed(7)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("logit_scale"):
            p.data.fill_(4.6052)
        elif p.ndim <= 1:
            p.data.copy_(noise * 0.1 + (1.0 if "norm" in name.lower() or "ln_" in name else 0.0) * (p.ndim == 1) * name.endswith("weight"))
        else:
            p.data.copy_(noise / p[0].numel() ** 0.5)


def save_hf(judge, folder: Path, name: str, rename=lambda n: n) -> None:
    tensors = {rename(n): t.contiguous() for n, t in judge.clip.state_dict().items() if t.is_floating_point()}
    save_file(tensors, folder / name) if name.endswith(".safetensors") else torch.save(tensors, folder / name)
    (folder / "config.json").write_text(json.dumps(judge.config()))


def pickscore(folder, args):
    judge = reference.PickScore.full()
    randomise(judge)
    save_hf(judge, folder, "model.safetensors")
    return judge


def spm(folder, args):
    judge = reference.StepAware.full()
    randomise(judge)
    save_hf(judge, folder, "sd-v1-5_step-aware_preference_model.bin", "model.{}".format)
    # The published folder has no config.json.
    (folder / "config.json").unlink()
    return judge


def clipscore(folder, args):
    judge = reference.ClipScore.full()
    randomise(judge)
    save_hf(judge, folder, "pytorch_model.bin")
    return judge


def aesthetic(folder, args):
    judge = reference.Aesthetic.full()
    randomise(judge)
    save_hf(judge, folder, "model.safetensors")
    head = folder / "sac+logos+ava1-l14-linearMSE.pth"
    if args.head:
        # The published file itself is read by both sides.
        judge.head.load_state_dict(torch.load(args.head, weights_only=True, map_location="cpu"))
        shutil.copyfile(args.head, head)
    else:
        torch.save(judge.head.state_dict(), head)
    return judge


def hps(version):
    def make(folder, args):
        judge = reference.Hps.full("no-antialias" not in version)
        randomise(judge.clip)
        judge.clip.half().float()
        state = {name: tensor.half() for name, tensor in judge.clip.state_dict().items()}
        name = "HPS_v2.1_compressed.pt" if "2.1" in version else "HPS_v2_compressed.pt"
        torch.save({"state_dict": state}, folder / name)
        return judge
    return make


def imagereward(folder, args):
    judge = reference.ImageReward.full()
    randomise(judge)
    torch.save(judge.state_dict(), folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text(reference.small_bert_vocabulary())
    return judge


JUDGES = {"pickscore": pickscore, "hpsv2": hps("hpsv2"), "hpsv2.1": hps("hpsv2.1"), "hpsv2.1-no-antialias": hps("hpsv2.1-no-antialias"),
          "imagereward": imagereward, "aesthetic": aesthetic, "clipscore": clipscore, "spm": spm}


def ours(binary: str, name: str, folder: Path, dtype: str) -> tuple[list[float], float]:
    """One probe per picture, for each its size; the scores, and the largest resident memory of any in GB."""
    scores, memory = [], 0.0
    for at, (size, prompt) in enumerate(zip(PICTURES, PROMPTS)):
        settings = {"judge": name, "judge_path": str(folder), "prompts": [prompt]}
        if name == "spm":
            settings["timestep"] = STEPS[at]
        case, out = folder / "case.safetensors", folder / "out.safetensors"
        save_file({"images": torch.from_numpy(picture(*size))[None]}, case,
                  metadata={"what": "score", "settings": json.dumps(settings)})
        process = subprocess.Popen([binary, "probe", "--case", case, "--out", out, "--dtype", dtype])
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"{name}: seedpo probe failed")
        memory = max(memory, usage.ru_maxrss * 1024 / 1e9)
        scores.append(float(load_file(out)["scores"][0]))
    return scores, memory


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--judge", nargs="*", default=list(JUDGES), choices=list(JUDGES))
    parser.add_argument("--binary", default=str(ROOT / "target/release/seedpo"))
    parser.add_argument("--head", help="the published aesthetic head; random where not given")
    parser.add_argument("--bf16", action="store_true")
    args = parser.parse_args()
    failed = False
    for name in args.judge:
        with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
            folder = Path(temporary)
            judge = JUDGES[name](folder, args)
            step = lambda at: {"timestep": STEPS[at]} if name == "spm" else {}
            expected = [judge.score(picture(*size), prompt, **step(at))
                        for at, (size, prompt) in enumerate(zip(PICTURES, PROMPTS))]
            del judge
            gc.collect()
            row = []
            for dtype in ["f32", "bf16"] if args.bf16 else ["f32"]:
                found, memory = ours(args.binary, name, folder, dtype)
                errors, sizes = np.abs(np.subtract(found, expected)), np.abs(expected)
                relative = errors.max() / sizes.max()
                each = np.divide(errors, sizes, out=np.zeros_like(errors), where=sizes > 0)
                row.append(f"{dtype}: {relative:.1e} of the largest score, {each.max():.1e} of each, "
                           f"{errors.max():.1e} absolute, {memory:.1f} GB")
                failed |= dtype == "f32" and relative > LIMIT
            print(f"{name:22} {'; '.join(row)}; scores {[round(s, 5) for s in expected]}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
