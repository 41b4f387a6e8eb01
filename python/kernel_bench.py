"""What three choices about kernels rest on, measured on this machine; docs/performance.md quotes it.

    .venv/bin/python python/kernel_bench.py [--threads 2]

First, f32 linear layers by libtorch's own product (MKL) and as 1x1 convolutions by oneDNN (crates/tensor/src/product.rs), in
GFLOP/s. Then 3x3 convolutions of small pictures with many channels, by libtorch and as products of patches
(crates/tensor/src/convolution.rs), in milliseconds. Then a pass of diffusers' U-Net at Stable Diffusion 1.5's size (target/models/sd15, python/make_models.py) in both
memory layouts, in seconds. The least of several turns counts. The machine should have nothing else to do.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

SD15 = Path(__file__).resolve().parents[1] / "target/models/sd15"
# Batch, tokens, inputs, outputs: the built-in model's, Stable Diffusion's, CLIP-H's; and of the smallest, where oneDNN begins to pay.
LAYERS = [
    (4, 64, 64, 64),
    (16, 64, 64, 64),
    (32, 64, 64, 64),
    (16, 256, 64, 256),
    (2, 4096, 320, 320),
    (2, 1024, 640, 640),
    (2, 77, 768, 320),
    (1, 64, 1280, 10240),
    (2, 256, 1280, 10240),
    (8, 257, 1280, 5120),
]
# Number type, inputs, outputs, side of the picture, batch: the lower levels of Stable Diffusion's U-Net at 256 x 256, around where
# products of patches stop paying.
CONVOLUTIONS = [
    *((torch.bfloat16, inputs, 1280, 4, batch) for inputs in (1280, 2560) for batch in (2, 4, 16)),
    *((torch.bfloat16, inputs, 1280, 8, batch) for inputs in (640, 1280, 1920, 2560) for batch in (2, 8)),
    *((torch.float32, inputs, 1280, 4, 2) for inputs in (1280, 2560)),
    *((torch.float32, inputs, 1280, 8, 2) for inputs in (1280, 2560)),
]
# Outputs that go to oneDNN at once.
OUTPUTS = 5120


def least(work, turns=5):
    work()
    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def by_convolution(x, weight, bias):
    rows = x.view(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    pieces = [
        torch.mkldnn_convolution(rows, part[:, :, None, None], b, [0, 0], [1, 1], [1, 1], 1)
        .permute(0, 2, 3, 1)
        .reshape(*x.shape[:-1], -1)
        for part, b in zip(weight.split(OUTPUTS), bias.split(OUTPUTS))
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)


def linear_layers():
    print("| batch, tokens, inputs, outputs | MKL, GFLOP/s | oneDNN, GFLOP/s | factor |\n| --- | --- | --- | --- |")
    for batch, tokens, inputs, outputs in LAYERS:
        x, weight, bias = torch.randn(batch, tokens, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        work = 2e-9 * batch * tokens * inputs * outputs
        mkl, onednn = (work / least(lambda: layer(x, weight, bias)) for layer in (F.linear, by_convolution))
        print(f"| {batch}, {tokens}, {inputs}, {outputs} | {mkl:.0f} | {onednn:.0f} | {onednn / mkl:.2f} |", flush=True)


def of_patches(x, weight, bias):
    batch, _, height, width = x.shape
    rows = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(batch * height * width, -1)
    matrix = weight.reshape(weight.shape[0], -1)
    y = by_convolution(rows[None], matrix, bias)[0] if x.dtype == torch.float32 and len(rows) >= 64 else F.linear(rows, matrix, bias)
    return y.view(batch, height * width, -1).transpose(1, 2).reshape(batch, -1, height, width)


def convolutions():
    print("\n| dtype | channels | side | batch | forward: libtorch, ms | patches, ms | factor | with backward | patches | factor |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for dtype, inputs, outputs, side, batch in CONVOLUTIONS:
        x = torch.randn(batch, inputs, side, side, dtype=dtype)
        weight, bias = torch.randn(outputs, inputs, 3, 3, dtype=dtype), torch.randn(outputs, dtype=dtype)
        gradient = torch.randn(batch, outputs, side, side, dtype=dtype)
        found = []
        for recorded in (False, True):
            for way in (lambda x, w, b: F.conv2d(x, w, b, padding=1), of_patches):

                def work():
                    y = way(x.detach().requires_grad_(recorded), weight, bias)
                    if recorded:
                        y.backward(gradient)

                found.append(1000 * least(work, 9))
        ratios = [f"{a:.1f} | {b:.1f} | {a / b:.2f}" for a, b in (found[:2], found[2:])]
        print(f"| {str(dtype)[6:]} | {inputs} → {outputs} | {side} | {batch} | {ratios[0]} | {ratios[1]} |", flush=True)


def layouts():
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD15 / "unet")).eval()
    print("\n| pixels | dtype | NCHW, s | NHWC, s |\n| --- | --- | --- | --- |")
    for dtype in (torch.bfloat16, torch.float32):
        for side in (32, 64):
            found = []
            for layout in (torch.contiguous_format, torch.channels_last):
                unet = unet.to(dtype=dtype, memory_format=layout)
                latents = torch.randn(2, 4, side, side, dtype=dtype).contiguous(memory_format=layout)
                text = torch.randn(2, 77, 768, dtype=dtype)
                found.append(least(lambda: unet(latents, 500, text), 3))
            print(f"| {8 * side} | {str(dtype)[6:]} | {found[0]:.2f} | {found[1]:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    torch.set_num_threads(parser.parse_args().threads)
    with torch.no_grad():
        linear_layers()
    convolutions()
    with torch.no_grad():
        if (SD15 / "unet/config.json").is_file():
            layouts()
        else:
            print(f"\nno layouts: {SD15} is not there; python/make_models.py sd15 writes it")


if __name__ == "__main__":
    main()
