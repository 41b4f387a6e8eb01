#!/usr/bin/env python3
"""Show with the real diffusers, transformers and peft that seedpo computes what they compute.

    .venv/bin/python python/interop.py            (or: make interop)

On random-weight pipelines like Stable Diffusion 1.x, 2.x (v-prediction) and XL, made in a temporary folder, and on the
built-in model where it is there: every stage of `seedpo probe` against diffusers; losses and gradients against an
independent PyTorch computation; a PEFT-made adapter read by seedpo; and an adapter trained and saved by `seedpo train`
taken by `load_lora_weights` unchanged, with the same picture from the same latents. Prints a table of the largest
errors and exits 1 if one is above its tolerance.
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

import interop_common as common
from interop_common import (FORWARD, ROOT, STEPS, Inputs, Seedpo, load_pipeline, make_pipeline, off, peft_adapter, record,
                            token_ids, tokenizers)  # isort: skip  it quietens the libraries imported below

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral
from diffusers.utils.logging import disable_progress_bar
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar as disable_transformers_bar

import reference_losses  # noqa: E402  the formulas, each side of a pair by itself
import sdxl  # noqa: E402  a small SDXL pipeline
import tokenizer as odd  # noqa: E402  the strings and the vocabulary of the tokenizer's fixture

GUIDANCE = 5.0
GRADIENT = 1e-4
# Gradients are compared with float64. Where float32 itself is further off than GRADIENT (the sharp attention of a trained
# model), this many times the distance of PyTorch's float32 counts as equal.
FLOORS = 3
SAMPLE = 2e-4  # twenty guided passes, each within FORWARD, amplified by guidance

# Two updates large enough to be seen; rank and alpha differ, so that the scale is put to the test.
TRAIN = """--method spo --judge colourfulness --threshold 0 --prompts red,blue --prompts-per-iteration 2 --steps 6
    --train-batch-size 4 --rank 4 --lora-alpha 8 --learning-rate 0.01 --max-train-steps 2 --validation-steps 0""".split()


def check_stages(seedpo, name, folder, pipeline, x):
    """Tokenizer, text encoder, U-Net, VAE and the DDIM step."""
    strings = odd.odd_strings()
    found = seedpo.probe(folder, "tokenize", {"prompts": strings})
    for key, tokenizer in tokenizers(pipeline).items():
        expected = token_ids(tokenizer, strings)
        wrong = (found[key] != expected).any(1).sum().item() if found[key].shape == expected.shape else len(strings)
        record(name, f"tokenize: {key} that differ of {len(strings)}", wrong, 0)

    with torch.no_grad():
        out = seedpo.probe(folder, "text", **x.ids)
        pooled = x.added["pooled"] if x.added else pipeline.text_encoder(x.ids["input_ids"]).pooler_output
        record(name, "text: prompt_embeds", off(out["prompt_embeds"], x.embeds), FORWARD)
        record(name, "text: pooled", off(out["pooled"], pooled), FORWARD)
        out = seedpo.probe(folder, "unet", latents=x.latents, timestep=x.timestep, **x.prompt)
        record(name, "unet: noise_pred", off(out["noise_pred"], x.unet(pipeline)(x.latents, x.timestep, x.embeds).sample), FORWARD)
        factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
        images = torch.rand(x.shape[0], 3, x.shape[2] * factor, x.shape[3] * factor) * 2 - 1
        out, gaussian = seedpo.probe(folder, "encode", images=images), pipeline.vae.encode(images).latent_dist
        record(name, "encode: mean", off(out["mean"], gaussian.mean), FORWARD)
        record(name, "encode: logvar", off(out["logvar"], gaussian.logvar), FORWARD)
        expected = pipeline.vae.decode(x.latents / pipeline.vae.config.scaling_factor).sample
        record(name, "decode: images", off(seedpo.probe(folder, "decode", latents=x.latents)["images"], expected), FORWARD)
    check_ddim(seedpo, name, folder, pipeline, x)


def check_ddim(seedpo, name, folder, pipeline, x):
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="epsilon", clip_sample=False)
    scheduler.set_timesteps(STEPS)
    noise_pred, noise = torch.randn(x.shape), torch.randn(x.shape)
    means, stds = [], []
    for i, t in enumerate(x.timestep):
        step = scheduler.step(noise_pred[i], t, x.latents[i], eta=1.0, variance_noise=torch.zeros(x.shape[1:]))
        means.append(step.prev_sample)
        stds.append(scheduler._get_variance(t, t - 1000 // STEPS) ** 0.5)
    mean, std = torch.stack(means), torch.stack(stds)
    following = mean + std.view(-1, 1, 1, 1) * noise
    out = seedpo.probe(folder, "ddim", {"steps": STEPS, "eta": 1.0}, latents=x.latents, noise_pred=noise_pred,
                       next_latents=following, timestep=x.timestep)
    normal = torch.distributions.Normal(mean.double(), std.double().view(-1, 1, 1, 1))
    record(name, "ddim: mean", off(out["mean"], mean), FORWARD)
    record(name, "ddim: std", off(out["std"], std), FORWARD)
    record(name, "ddim: log_prob", off(out["log_prob"], normal.log_prob(following.double()).mean((1, 2, 3))), FORWARD)


def pipeline_sample(pipeline, x, **options):
    if x.added:
        pooled = x.added["pooled"]
        options |= {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": x.negative_pooled.expand_as(pooled)}
    return pipeline(prompt_embeds=x.embeds, negative_prompt_embeds=x.negative.expand_as(x.embeds), latents=x.latents,
                    num_inference_steps=STEPS, guidance_scale=GUIDANCE, eta=0.0, **options).images


def check_sample(seedpo, name, folder, pipeline, x, adapter=None, label="sample: latents"):
    settings = {"steps": STEPS, "eta": 0.0, "guidance_scale": GUIDANCE, "sampler": "ddim"}
    settings |= {"adapter": str(adapter)} if adapter else {}
    out = seedpo.probe(folder, "sample", settings, latents=x.latents, **x.both)
    record(name, label, off(out["latents"], pipeline_sample(pipeline, x, output_type="latent")), SAMPLE)
    return out["latents"]


def check_samplers(seedpo, name, folder, pipeline, x):
    """Every sampler but DDIM, made from the folder's own configuration."""
    noise = torch.randn(STEPS, *x.shape)
    karras = {"use_karras_sigmas": True}
    samplers = {"euler": (EulerDiscreteScheduler, {}), "euler-karras": (EulerDiscreteScheduler, karras),
                "euler-a": (EulerAncestralDiscreteScheduler, {}), "dpmpp-2m": (DPMSolverMultistepScheduler, {}),
                "dpmpp-2m-karras": (DPMSolverMultistepScheduler, karras)}
    usual = pipeline.scheduler
    for sampler, (made, changes) in samplers.items():
        settings = {"steps": STEPS, "guidance_scale": GUIDANCE, "sampler": sampler}
        tensors = {"noise": noise} if sampler == "euler-a" else {}
        out = seedpo.probe(folder, "sample", settings, latents=x.latents, **x.both, **tensors)
        pipeline.scheduler, drawn = made.from_pretrained(folder, subfolder="scheduler", **changes), iter(noise)
        ancestral.randn_tensor = lambda *_, **__: next(drawn)
        expected = pipeline_sample(pipeline, x, output_type="latent")
        record(name, f"sample, {sampler}: latents", off(out["latents"], expected), SAMPLE)
    pipeline.scheduler = usual


def check_peft(seedpo, name, folder, pipeline, x, scratch):
    """Adapters made by PEFT, saved by diffusers in both spellings, give the same prediction here."""
    for rank, alpha, spelling in [(4, 8, "peft"), (3, 3, "diffusers")]:
        path = peft_adapter(pipeline, scratch / f"{name}-{spelling}", rank, alpha, spelling)
        out = seedpo.probe(folder, "unet", {"adapter": str(path)}, latents=x.latents, timestep=x.timestep, **x.prompt)
        expected = x.unet(pipeline)(x.latents, x.timestep, x.embeds).sample.detach()
        record(name, f"PEFT adapter ({spelling} keys): noise_pred", off(out["noise_pred"], expected), FORWARD)
        if spelling == "peft":
            check_sample(seedpo, name, folder, pipeline, x, path, "PEFT adapter: sampled latents")
        pipeline.unet.delete_adapters("default")


def epsilon(pipeline, x, scale):
    """The guided noise prediction as a function of latents and timestep; v turned into noise."""

    def predict(latents, t):
        output = reference_losses.guided(x.unet(pipeline), latents, t, x.embeds, x.negative, scale)
        alpha = pipeline.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        return output if pipeline.scheduler.config.prediction_type == "epsilon" else alpha.sqrt() * output + (1 - alpha).sqrt() * latents

    return predict


def adapter_gradients(unet, loss):
    """The gradient of every adapter tensor by the key that `seedpo probe` gives it."""
    for parameter in unet.parameters():
        parameter.grad = None
    loss.backward()
    return {f"grad.unet.{k.replace('.default', '')}": p.grad for k, p in unet.named_parameters() if p.grad is not None}


def check_losses(seedpo, name, folder, pipeline, x, scratch):
    """Losses, margins and adapter gradients of both methods against PyTorch with a PEFT adapter."""
    unet = pipeline.unet
    reference_path = peft_adapter(pipeline, scratch / f"{name}-reference", 2, 2, "peft")
    unet.delete_adapters("default")
    policy_path = peft_adapter(pipeline, scratch / f"{name}-policy", 4, 8, "peft")
    alphas = pipeline.scheduler.alphas_cumprod.double()
    cases = [
        ("spo", dict(beta=10.0, gamma=0.0, form="flatten", clip=0.1, guidance_scale=5.0), False),
        ("spo", dict(beta=10.0, gamma=2.0, form="flatten", clip=None, guidance_scale=1.0), True),
        ("d3po", dict(beta=0.1, gamma=1.0, form="flatten", clip=0.1, guidance_scale=5.0), False),
        ("d3po", dict(beta=0.1, gamma=0.5, form="literal-power", clip=None, guidance_scale=5.0), True),
    ]
    for method, settings, with_reference in cases:
        torch.manual_seed(5)
        settings |= {"steps": STEPS, "eta": 1.0}

        predict = epsilon(pipeline, x, settings["guidance_scale"])

        def reference(latents, t):
            if with_reference:
                unet.load_lora_adapter(str(reference_path.parent), weight_name=reference_path.name, prefix="unet", adapter_name="reference")
                unet.set_adapter("reference")
            else:
                unet.disable_adapters()
            found = predict(latents, t)
            if with_reference:
                unet.delete_adapters("reference")
            unet.enable_adapters()
            unet.set_adapter("default")
            for key, parameter in unet.named_parameters():
                parameter.requires_grad_("lora_" in key)
            return found

        def following(latents):
            with torch.no_grad():
                mean, std, _ = reference_losses.ddim_mean(alphas, x.timestep, STEPS, 1.0, latents, reference(latents, x.timestep))
            return (mean + std * torch.randn(x.shape)).float()

        first, second = x.latents, x.latents if method == "spo" else torch.randn(x.shape)
        sides = [(first, following(first)), (second, following(second))]
        tensors = {"next_latents_w": sides[0][1], "next_latents_l": sides[1][1], "timestep": x.timestep, **x.both}
        tensors |= {"latents": first} if method == "spo" else {"latents_w": first, "latents_l": second}
        settings |= {"method": method, "adapter": str(policy_path)}
        loss, margin = reference_losses.step_pair(predict, reference, alphas, tensors, settings)
        expected = adapter_gradients(unet, loss)
        # The same in float64: how far PyTorch's own float32 is from it is the least that any float32 can be held to.
        exact = adapter_gradients(unet.double(), reference_losses.step_pair(predict, reference, alphas, tensors, settings)[0])
        unet.float()
        floor = max(off(expected[k], exact[k]) for k in exact)
        settings |= {"reference_adapter": str(reference_path)} if with_reference else {}
        out = seedpo.probe(folder, "loss", settings, **tensors)
        label = f"{method} γ={settings['gamma']:g} {settings['form'].split('-')[0]} clip={settings['clip']} w={settings['guidance_scale']:g}"
        record(name, f"loss: {label}", off(out["loss"], loss.detach().view(1)), GRADIENT)
        record(name, f"margin: {label}", off(out["margin"], margin.detach()), GRADIENT)
        gradients = {k: v for k, v in out.items() if k.startswith("grad.")}
        same = gradients.keys() == exact.keys()
        worst = max(off(gradients[k], exact[k]) for k in exact) if same else None
        note = f"PyTorch's own float32: {floor:.1e}" if same else f"{len(gradients)} keys, not {len(exact)}"
        record(name, f"gradients: {label}", worst, max(GRADIENT, FLOORS * floor), note)
    unet.delete_adapters("default")


def check_ours(seedpo, name, folder, pipeline, x, scratch):
    """An adapter that `seedpo train` wrote: `load_lora_weights` takes it, and the pictures agree."""
    run = scratch / f"{name}-run"
    seedpo.run("train", "--model", folder, "--output-dir", scratch, "--name", run.name, *TRAIN)
    path = run / "pytorch_lora_weights.safetensors"
    before = pipeline_sample(pipeline, x, output_type="latent")
    pipeline.load_lora_weights(str(run), weight_name=path.name)
    attached = {k.replace(".default_0", ""): v for k, v in pipeline.unet.named_parameters() if "lora_" in k}
    stored = load_file(path)
    same = {f"unet.{k}" for k in attached} == stored.keys() and all(torch.equal(v, stored[f"unet.{k}"]) for k, v in attached.items())
    record(name, "our adapter in diffusers: tensors that differ", 0 if same else 1, 0, f"{len(stored)} tensors")
    scales = {module.scaling["default_0"] for module in pipeline.unet.modules() if hasattr(module, "scaling") and module.scaling}
    record(name, "our adapter in diffusers: scale alpha/rank = 2", abs(next(iter(scales)) - 2.0) if len(scales) == 1 else None, 0.0)
    latents = check_sample(seedpo, name, folder, pipeline, x, path, "our adapter: sampled latents")
    moved = off(latents, before)
    record(name, "our adapter: samples that it does not move", 0 if moved > 1e-4 else 1, 0, f"by {moved:.1e}")
    ours = seedpo.probe(folder, "decode", latents=latents)["images"]
    theirs = torch.from_numpy(pipeline_sample(pipeline, x, output_type="np")).permute(0, 3, 1, 2)
    bytes_of = lambda image: (image.clamp(0, 1) * 255).round()
    record(name, "our adapter: picture, largest difference of 255", (bytes_of(ours / 2 + 0.5) - bytes_of(theirs)).abs().max().item(), 1)
    pipeline.unload_lora_weights()


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seedpo", type=Path, default=ROOT / "target/release/seedpo")
    options.add_argument("--model", type=Path, default=ROOT / "assets/emoji-sd", help="one more folder, skipped if missing")
    options.add_argument("--only", nargs="*", default=["stages", "sample", "samplers", "peft", "losses", "ours"], help="groups of checks")
    chosen = options.parse_args()
    chosen.seedpo.is_file() or sys.exit(f"interop: {chosen.seedpo} is missing; `make build` makes it.")
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    logging.disable(logging.WARNING)
    disable_progress_bar()
    disable_transformers_bar()
    with tempfile.TemporaryDirectory() as tmp:
        scratch = Path(tmp)
        seedpo = Seedpo(chosen.seedpo, scratch)
        folders = {kind: make_pipeline(scratch, kind) for kind in ("sd1", "sd2")}
        folders["sdxl"] = sdxl.make_pipeline(scratch / "sdxl", dict(channels=(32, 64, 64), groups=16, texts=(24, 40), pooled=32, vae=(16, 32)))
        more = (chosen.model / "model_index.json").is_file()
        folders |= {chosen.model.name[:8]: chosen.model} if more else {}
        more or print(f"(no model in {chosen.model}: only random-weight pipelines are checked)")
        for name, folder in folders.items():
            pipeline = load_pipeline(folder)
            with torch.no_grad():
                x = Inputs(pipeline)
            groups = {
                "stages": lambda: check_stages(seedpo, name, folder, pipeline, x),
                "sample": lambda: check_sample(seedpo, name, folder, pipeline, x),
                "samplers": lambda: check_samplers(seedpo, name, folder, pipeline, x),
                "peft": lambda: check_peft(seedpo, name, folder, pipeline, x, scratch),
                "losses": lambda: check_losses(seedpo, name, folder, pipeline, x, scratch),
                "ours": lambda: check_ours(seedpo, name, folder, pipeline, x, scratch),
            }
            for group in chosen.only:
                try:
                    groups[group]()
                except (RuntimeError, AssertionError, KeyError, ValueError) as error:
                    record(name, f"{group}: could not run", None, 0, str(error).strip().replace("\n", " | ")[:600])
    print(f"\n{len(common.rows)} checks, {common.failures} failed")
    sys.exit(1 if common.failures else 0)


if __name__ == "__main__":
    main()
