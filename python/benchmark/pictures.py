"""Random pictures as PNG files, and preference pairs of them, without any package."""

import json
import random
import struct
import zlib


def write_png(path, side, generator):
    """A square picture of random 8 x 8 blocks of colour."""
    blocks = [[generator.randbytes(3) for _ in range(0, side, 8)] for _ in range(0, side, 8)]
    rows = b"".join(b"\0" + b"".join(blocks[y // 8][x // 8] for x in range(side)) for y in range(side))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def write_pairs(folder, prompts, side, seed=0):
    """A JSONL file with a pair of pictures for each prompt, in `folder`; its path."""
    generator, lines = random.Random(seed), []
    for number, prompt in enumerate(prompts):
        pair = {"prompt": prompt, "winner": f"{number}-winner.png", "loser": f"{number}-loser.png"}
        for key in ("winner", "loser"):
            write_png(folder / pair[key], side, generator)
        lines.append(json.dumps(pair))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
