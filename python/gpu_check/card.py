"""Run by torch's Python: the device's bf16 matrix rate, and the floating-point operations of a U-Net's passes, as JSON.

    python card.py DEVICE MATRIX_SIDE [UNET_CONFIG LATENT_SIDE]
"""

import json
import sys
import time

import torch


def matrix_rate(device, side, products=10, warm_up=3):
    """FLOP/s of a bf16 product of two square matrices of random numbers."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))

    def wait():
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    for _ in range(warm_up):
        a @ b
    wait()
    began = time.perf_counter()
    for _ in range(products):
        a @ b
    wait()
    return products * 2 * side**3 / (time.perf_counter() - began)


def unet_operations(config, side):
    """Operations of one latent's forward pass and of the backward pass for LoRA factors, counted on no data."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).requires_grad_(False)
        unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
        latents = torch.randn(1, unet.config.in_channels, side, side)
        timestep, embeds = torch.zeros(1), torch.randn(1, 77, unet.config.cross_attention_dim)
        with FlopCounterMode(display=False) as forward:
            output = unet(latents, timestep, embeds).sample
        with FlopCounterMode(display=False) as backward:
            output.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def main():
    device, side, *rest = sys.argv[1:]
    found = {"matrix_rate": matrix_rate(device, int(side)), "torch": torch.__version__}
    if device.startswith("cuda"):
        found["card"] = torch.cuda.get_device_name()
    if rest:
        config = {key: value for key, value in json.load(open(rest[0])).items() if not key.startswith("_")}
        found["forward"], found["backward"] = unet_operations(config, int(rest[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
