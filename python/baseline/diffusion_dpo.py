"""Diffusion-DPO updates on dataset pairs, shaped like diffusers' train_diffusion_dpo_lora.py at its default settings.

Kept from it: winner and loser share noise and timestep and go through each network as one doubled batch; pictures are
encoded and prompts embedded anew in every step; the reference is the same U-Net with its adapter switched off, under
no_grad; no guidance; beta 2500.
"""

import json

import numpy
import torch
import torch.nn.functional as F
from common import Clock
from PIL import Image

BETA = 2500.0


def read_pairs(setup, count):
    """The next `count` pairs of the file, going round it: pixels in [-1, 1] as the script's transforms leave them,
    [count, 6, H, W], the winner's channels first; and their prompts."""
    side = setup.latent_shape[1] * 2 ** (len(setup.vae.config.block_out_channels) - 1)
    path = setup.settings.pairs
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    chosen = [lines[(setup.pairs_seen + n) % len(lines)] for n in range(count)]
    setup.pairs_seen += count

    def pixels(name):
        picture = Image.open(path.parent / name).convert("RGB").resize((side, side))
        return torch.from_numpy(numpy.asarray(picture).copy()).permute(2, 0, 1).to(setup.device) / 127.5 - 1

    pictures = [torch.cat([pixels(pair["winner"]), pixels(pair["loser"])]) for pair in chosen]
    return torch.stack(pictures), [pair["prompt"] for pair in chosen]


@torch.no_grad()
def encode_pictures(setup, pixel_values):
    """Scaled latents [2B, C, h, w]: the winners', then the losers'."""
    pictures = torch.cat(pixel_values.chunk(2, dim=1)).to(setup.dtype)
    return setup.vae.encode(pictures).latent_dist.sample().float() * setup.vae.config.scaling_factor


def denoising_errors(setup, noisy, timesteps, embeds, target):
    """Mean squared error of each winner [B] and of each loser [B]."""
    prediction = setup.unet(noisy.to(setup.dtype), timesteps, embeds).sample.float()
    return F.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3)).chunk(2)


def update(setup, pixel_values, prompts):
    """One optimizer step on a batch of pairs; its loss."""
    latents, count = encode_pictures(setup, pixel_values), len(prompts)
    noise = setup.noise(count, *latents.shape[1:]).repeat(2, 1, 1, 1)
    timesteps = torch.randint(0, setup.scheduler.config.num_train_timesteps, (count,), device=setup.device).repeat(2)
    noisy = setup.scheduler.add_noise(latents, noise, timesteps)
    v_prediction = setup.scheduler.config.prediction_type == "v_prediction"
    target = setup.scheduler.get_velocity(latents, noise, timesteps) if v_prediction else noise
    embeds = setup.encode(prompts).repeat(2, 1, 1)
    winner, loser = denoising_errors(setup, noisy, timesteps, embeds, target)
    setup.unet.disable_adapters()
    with torch.no_grad():
        winner_ref, loser_ref = denoising_errors(setup, noisy, timesteps, embeds, target)
    setup.unet.enable_adapters()
    loss = -F.logsigmoid(BETA * ((winner_ref - loser_ref) - (winner - loser))).mean()
    loss.backward()
    setup.update()
    return loss.item()


def iterate(setup):
    """Updates on as many pairs as an iteration has prompts."""
    clock, settings, losses, left = Clock(), setup.settings, [], len(setup.settings.prompts)
    setup.unet.train()
    while left > 0:
        count = min(settings.train_batch, left)
        with clock.phase("rollout"):
            pixel_values, prompts = read_pairs(setup, count)
        with clock.phase("train"):
            losses.append(update(setup, pixel_values, prompts))
        left -= count
    return clock.report() | {"pairs": len(settings.prompts), "loss": sum(losses) / len(losses)}
