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
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
import torch.nn.functional as F
from diffusers import (AutoencoderKL, DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler,
                       EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline,
                       UNet2DConditionModel)
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils.logging import disable_progress_bar
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar as disable_transformers_bar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python/fixtures"))
sys.path.insert(0, str(ROOT / "python"))
import reference_losses  # noqa: E402  the formulas, each side of a pair by itself
import sdxl  # noqa: E402  a small SDXL pipeline
import tokenizer as odd  # noqa: E402  the strings and the vocabulary of the tokenizer's fixture

STEPS, GUIDANCE = 20, 5.0
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
FORWARD = 2e-5  # of the largest value, f32: the same sums in another order
GRADIENT = 1e-4
# Gradients are compared with float64. Where float32 itself is further off than GRADIENT (the sharp attention of a trained
# model), this many times the distance of PyTorch's float32 counts as equal.
FLOORS = 3
SAMPLE = 2e-4  # twenty guided passes, each within FORWARD, amplified by guidance

# Two updates large enough to be seen; rank and alpha differ, so that the scale is put to the test.
TRAIN = """--method spo --judge colourfulness --threshold 0 --prompts red,blue --prompts-per-iteration 2 --steps 6
    --train-batch-size 4 --rank 4 --lora-alpha 8 --learning-rate 0.01 --max-train-steps 2 --validation-steps 0""".split()

rows, failures = [], 0


def record(model, check, error, tolerance, note=""):
    """One row of the table; `error` None means that the check could not run."""
    global failures
    passed = error is not None and error <= tolerance
    failures += not passed
    shown = "-" if error is None else f"{error:.1e}" if isinstance(error, float) else str(error)
    rows.append((model, check, shown, f"{tolerance:g}", "ok" if passed else "FAIL", note))
    print("  ".join(f"{cell:<{width}}" for cell, width in zip(rows[-1], (8, 44, 8, 8, 5, 0))).rstrip(), flush=True)


def off(found, expected):
    """The largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape, f"{tuple(found.shape)} instead of {tuple(expected.shape)}"
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp_min(1e-12)).item()


class Seedpo:
    """The command under test, run as a subprocess."""

    def __init__(self, binary, folder):
        self.binary, self.folder, self.count = str(binary), folder, 0

    def run(self, *arguments):
        done = subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True, timeout=1200)
        if done.returncode != 0:
            raise RuntimeError(f"seedpo {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr or done.stdout}")
        return done.stdout

    def probe(self, model, what, settings=None, **tensors):
        self.count += 1
        case, out = (self.folder / f"{role}-{self.count}.safetensors" for role in ("case", "out"))
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, case, metadata={"what": what, "settings": json.dumps(settings or {})})
        self.run("probe", "--model", model, "--case", case, "--out", out)
        with safe_open(out, "pt") as file:
            assert file.metadata()["what"] == what
        return load_file(out)


def make_pipeline(folder, kind):
    """A random-weight pipeline: `sd1` (conv projections, quick_gelu, PNDM, epsilon) or `sd2` (linear projections, heads
    per level, gelu, DDIM, v-prediction, padding with `!`)."""
    two = kind == "sd2"
    torch.manual_seed(len(kind) + two)
    tokens = folder / "made-tokenizer"
    odd.legacy_files(tokens, "!" if two else odd.EOS)
    odd.make_vocabulary(tokens)
    tokenizer = CLIPTokenizer.from_pretrained(str(tokens))
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=32,
        hidden_act="gelu" if two else "quick_gelu", bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
    down, up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64, 64), layers_per_block=2,
        norm_num_groups=16, cross_attention_dim=32, attention_head_dim=(2, 4, 4) if two else 4, use_linear_projection=two,
        down_block_types=(down, down, "DownBlock2D"), up_block_types=("UpBlock2D", up, up))
    vae = AutoencoderKL(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, latent_channels=4, sample_size=16,
                        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    schedule = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)
    v_prediction = dict(clip_sample=False, prediction_type="v_prediction")
    scheduler = DDIMScheduler(**schedule, **v_prediction) if two else PNDMScheduler(**schedule, skip_prk_steps=True)
    pipeline = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False)
    pipeline.save_pretrained(folder / kind)
    return folder / kind


def load_pipeline(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    for part in filter(None, (pipeline.unet, pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None))):
        part.eval().requires_grad_(False)
    return pipeline


def token_ids(tokenizer, prompts):
    length = tokenizer.model_max_length
    return tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def tokenizers(pipeline):
    """By the name of the ids they give."""
    second = getattr(pipeline, "tokenizer_2", None)
    return {"input_ids": pipeline.tokenizer} | ({"input_ids_2": second} if second else {})


class Inputs:
    """Random inputs of the right sizes for a pipeline."""

    def __init__(self, pipeline, batch=3):
        torch.manual_seed(11)
        unet = pipeline.unet.config
        self.shape = (batch, unet.in_channels, unet.sample_size, unet.sample_size)
        pipeline.scheduler.set_timesteps(STEPS)
        steps = pipeline.scheduler.timesteps
        self.timestep = steps[torch.linspace(1, STEPS - 1, batch).long()].clone()
        prompts = ["a red fox", "", "two cats, 4k 😀"][:batch]
        self.ids = {name: token_ids(tokenizer, prompts) for name, tokenizer in tokenizers(pipeline).items()}
        self.latents = torch.randn(self.shape)
        self.embeds, _, *rest = pipeline.encode_prompt(prompts, "cpu", 1, False) if len(self.ids) == 1 else pipeline.encode_prompt(prompts)
        self.negative = self.embeds[1:2].clone()
        # What SDXL adds, as `seedpo probe` names it; nothing for the others.
        self.added, self.negative_pooled = {}, None
        if len(self.ids) == 2:
            side = float(unet.sample_size * pipeline.vae_scale_factor)
            time_ids = torch.tensor([side, side, 0.0, 0.0, side, side]).repeat(batch, 1)
            self.added, self.negative_pooled = {"pooled": rest[0], "time_ids": time_ids}, rest[0][1:2].clone()

    @property
    def prompt(self):
        """What one pass of the U-Net is conditioned on."""
        return {"prompt_embeds": self.embeds} | self.added

    @property
    def both(self):
        """What a guided pass is conditioned on."""
        negative = {"negative_pooled": self.negative_pooled} if self.added else {}
        return self.prompt | {"negative_prompt_embeds": self.negative} | negative

    def unet(self, pipeline):
        """The U-Net as a function of latents, timestep and embeddings, in its own dtype."""

        def run(latents, t, embeds):
            dtype, added = pipeline.unet.dtype, None
            if self.added:
                pooled = self.added["pooled"] if embeds is self.embeds else self.negative_pooled.expand(len(latents), -1)
                added = {"text_embeds": pooled.to(dtype), "time_ids": self.added["time_ids"]}
            return pipeline.unet(latents.to(dtype), t, embeds.to(dtype), added_cond_kwargs=added)

        return run


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


def peft_adapter(pipeline, folder, rank, alpha, spelling):
    """A random adapter made by PEFT on the pipeline's U-Net, left attached, and saved by diffusers."""
    torch.manual_seed(rank)
    unet = pipeline.unet
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=TARGETS))
    for key, value in unet.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.05)
    layers, metadata = get_peft_model_state_dict(unet), _collate_lora_metadata({"unet": unet})
    if spelling == "diffusers":
        layers, metadata = convert_state_dict_to_diffusers(layers), {}
    type(pipeline).save_lora_weights(folder, layers, **metadata)
    return folder / "pytorch_lora_weights.safetensors"


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
    print(f"\n{len(rows)} checks, {failures} failed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
