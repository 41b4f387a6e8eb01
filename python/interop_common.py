"""What the interop scripts share: the command under test, pipelines and inputs, and the table of results."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "python/fixtures"))
import tokenizer as odd  # noqa: E402  the strings and the vocabulary of the tokenizer's fixture

STEPS = 20
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
FORWARD = 2e-5  # of the largest value, f32: the same sums in another order

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
