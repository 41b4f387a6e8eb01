"""The tables and pictures of docs/methods from the runs of scripts/method_curves.sh.

    .venv/bin/python python/method_curves.py [runs/methods]

Prints a table of each method's previews, and of the samples it learns from (rows of docs/methods/*.md), and writes docs/images/methods/METHOD.png: previews
before training, after it, and after its SEE form, same prompts and noise in every row. Needs Pillow.
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
METHODS = ["spo", "d3po", "ddpo", "dpok", "diffusion-dpo", "seppo", "spin", "sft"]
# Of so many updates at a run's beginning and end the samples' mean score is shown, where a method draws samples to learn from.
SAMPLES = {"d3po": (6, 6), "ddpo": (12, 16), "dpok": (12, 16)}
PICTURES, LABEL, GAP, SIDE = 8, 150, 6, 96


def records(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def mean(updates: list[dict]) -> float:
    return sum(update["reward_mean"] for update in updates) / len(updates)


def header(method: str, run: Path) -> str:
    columns = ["run", *(str(preview["step"]) for preview in records(run, "preview"))]
    if method in SAMPLES:
        columns.append("samples, first {} and last {} updates".format(*SAMPLES[method]))
    columns += ["variety", "KL"]
    return f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"


def row(method: str, name: str, run: Path) -> str:
    found, updates = records(run, "preview"), records(run, "update")
    first, last = found[0], found[-1]
    cells = [f"`{name}`", *(f"{preview['reward_mean']:.1f}" for preview in found)]
    if method in SAMPLES:
        begin, end = SAMPLES[method]
        cells.append(f"{mean(updates[:begin]):.1f}, {mean(updates[-end:]):.1f}")
    cells.append(f"{100 * last['measured']['rmse'] / first['measured']['rmse']:.0f} %")
    cells.append(f"{last.get('kl_to_reference', float('nan')):.3f}")
    return f"| {' | '.join(cells)} |"


def pictures(grid: Path) -> list[Image.Image]:
    """Previews, the first of each prompt before the second ones."""
    sheet = Image.open(grid)
    about = json.loads(sheet.info["seedpo-previews"])
    columns, (width, height) = about["images_per_prompt"], about["size"]
    across, down, margin = width * about["scale"], height * about["scale"], about["margin"]

    def one(prompt: int, copy: int) -> Image.Image:
        left, top = margin + copy * (across + margin), margin + prompt * (down + margin)
        return sheet.crop((left, top, left + across, top + down)).convert("RGB").resize((SIDE, SIDE), Image.LANCZOS)

    order = [(prompt, copy) for copy in range(columns) for prompt in range(len(about["prompts"]))]
    return [one(*place) for place in order[:PICTURES]]


def sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    whole = Image.new("RGB", (LABEL + PICTURES * (SIDE + GAP), GAP + len(rows) * (SIDE + GAP)), "white")
    draw = ImageDraw.Draw(whole)
    for at, (label, images) in enumerate(rows):
        top = GAP + at * (SIDE + GAP)
        draw.text((GAP, top + SIDE // 2 - 10), label, fill="black", font=ImageFont.load_default(15))
        for column, image in enumerate(images):
            whole.paste(image, (LABEL + column * (SIDE + GAP), top))
    return whole


def main() -> None:
    runs = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/methods"
    out = ROOT / "docs/images/methods"
    out.mkdir(parents=True, exist_ok=True)
    for method in METHODS:
        forms = [name for name in (method, f"see-{method}") if (runs / name).is_dir()]
        print(f"\n{header(method, runs / method)}")
        rows = []
        for name in forms:
            print(row(method, name, runs / name))
            grids = sorted((runs / name / "samples").glob("step-*.png"))
            if not rows:
                rows.append(("before", pictures(grids[0])))
            rows.append((name.upper() if len(name) < 9 else name.replace("see-", "SEE-"), pictures(grids[-1])))
        sheet(rows).quantize(128).save(out / f"{method}.png", optimize=True)


if __name__ == "__main__":
    main()
