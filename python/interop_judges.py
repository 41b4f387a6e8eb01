"""Judges trained by `seedpo judge train`, loaded by transformers: the same scores there and here.

    .venv/bin/python python/interop_judges.py [FOLDER ...]      # default: the built-in assets/judges/clip and preference
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
from formula import picture  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SEEDPO = os.environ.get("SEEDPO", ROOT / "target/release/seedpo")
PROMPTS = ["red apple", "cat face with tears of joy", "clock face three thirty"]
SIZES = [(64, 64), (97, 40), (50, 203)]


def features(output) -> torch.Tensor:
    """transformers 5 wraps features in an output."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def reference(folder: Path, images: list[Image.Image]) -> list[float]:
    model, tokenizer = CLIPModel.from_pretrained(folder).float().eval(), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    scores = []
    with torch.no_grad():
        for image, prompt in zip(images, PROMPTS):
            pixels = processor(image, return_tensors="pt")["pixel_values"]
            ids = tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
            pair = [features(model.get_image_features(pixel_values=pixels)), features(model.get_text_features(input_ids=ids))]
            left, right = [x / x.norm(dim=-1, keepdim=True) for x in pair]
            scores.append(float(model.logit_scale.exp() * (left * right).sum()))
    return scores


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]] or [ROOT / "assets/judges" / name for name in ("clip", "preference")]
    with tempfile.TemporaryDirectory() as scratch:
        images = [Image.fromarray(picture(h, w, seed)) for seed, (h, w) in enumerate(SIZES)]
        for index, image in enumerate(images):
            image.save(f"{scratch}/{index}.png")
        Path(scratch, "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        for folder in folders:
            command = [SEEDPO, "score", "--judge", f"pickscore={folder}", "--prompts", f"{scratch}/prompts.txt", "--quiet",
                       "--jsonl", f"{scratch}/scores.jsonl", *[f"{scratch}/{i}.png" for i in range(len(images))]]
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            lines = [json.loads(line) for line in Path(scratch, "scores.jsonl").read_text().splitlines()]
            found = [next(iter(line["scores"].values())) for line in lines]
            wanted = reference(folder, images)
            error = max(abs(a - b) for a, b in zip(found, wanted)) / max(map(abs, wanted))
            print(f"{folder}: transformers {[round(w, 4) for w in wanted]}, largest relative error {error:.1e}")
            assert error < 1e-4, found


if __name__ == "__main__":
    main()
