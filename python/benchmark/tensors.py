"""Just enough of the safetensors format, and random LoRA adapters, without any package."""

import array
import json
import random
import struct
from pathlib import Path

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def read_header(path):
    """{name: {dtype, shape, data_offsets}} of a file, its `__metadata__` left out, and where the data begins."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def read_f32(path):
    """{name: (shape, array of floats)} of a file of f32 tensors; others are left out."""
    header, start = read_header(path)
    data, tensors = Path(path).read_bytes(), {}
    for name, entry in header.items():
        if entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            tensors[name] = (entry["shape"], array.array("f", data[start + begin:start + end]))
    return tensors


def write(path, tensors, metadata):
    """Write {name: (shape, values)}: floats as F32, ints as I64."""
    header, parts, offset = {"__metadata__": metadata}, [], 0
    for name, (shape, values) in tensors.items():
        kind, code = ("I64", "q") if isinstance(values[0], int) else ("F32", "f")
        parts.append(array.array(code, values).tobytes())
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + len(parts[-1])]}
        offset += len(parts[-1])
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def normal(shape, scale=1.0, seed=0):
    """A tensor of normal numbers for `write`."""
    generator, count = random.Random(seed), 1
    for side in shape:
        count *= side
    return shape, [scale * generator.gauss(0, 1) for _ in range(count)]


def write_adapter(model, path, rank=4, scale=0.02):
    """A LoRA file in diffusers layout with random factors for every attention projection of the model folder's U-Net."""
    tensors = {}
    for file in sorted((Path(model) / "unet").glob("*.safetensors")):
        for name, entry in read_header(file)[0].items():
            module = name.removesuffix(".weight")
            if module != name and module.endswith(TARGETS) and ".attn" in module:
                rows, columns = entry["shape"][:2]
                tensors[f"unet.{module}.lora_A.weight"] = normal([rank, columns], scale, seed=len(tensors))
                tensors[f"unet.{module}.lora_B.weight"] = normal([rows, rank], scale, seed=len(tensors))
    if not tensors:
        raise ValueError(f"{model}: no attention projections in unet/*.safetensors")
    write(path, dict(sorted(tensors.items())), {"format": "pt"})
