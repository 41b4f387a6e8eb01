"""What the methods share: the models, guidance, the DDIM transition, the judge and the clock."""

import copy
import io
import math
import time
from collections import defaultdict
from contextlib import contextmanager

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.training_utils import cast_training_params
from diffusers.utils.logging import disable_progress_bar
from peft import LoraConfig
from PIL import Image


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
LEARNING_RATES = {"d3po": 3e-5, "spo": 6e-5, "diffusion-dpo": 1e-4}


def load_pipeline(settings):
    """The folder as a pipeline on the device, nothing trainable, in the dtype asked for."""
    disable_progress_bar()
    pipeline = StableDiffusionPipeline.from_pretrained(settings.model, torch_dtype=DTYPES[settings.dtype], local_files_only=True)
    pipeline.to(settings.device)
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.requires_grad_(False).eval()
    if settings.vae_slicing:
        pipeline.vae.enable_slicing()
    return pipeline


class Setup:
    """The pipeline with a LoRA policy, a deep-copied reference where the method has one, the optimizer, and the settings."""

    def __init__(self, settings):
        began = time.perf_counter()
        self.settings, self.device, self.dtype = settings, torch.device(settings.device), DTYPES[settings.dtype]
        pipeline = load_pipeline(settings)
        self.tokenizer, self.text_encoder, self.vae, self.unet = (
            pipeline.tokenizer, pipeline.text_encoder, pipeline.vae, pipeline.unet)
        # train_diffusion_dpo_lora.py gets its reference by switching the adapter off.
        self.reference = None if settings.method == "diffusion-dpo" else copy.deepcopy(self.unet)
        self.unet.add_adapter(LoraConfig(r=settings.rank, lora_alpha=settings.rank, init_lora_weights="gaussian",
                                         target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
        cast_training_params(self.unet, dtype=torch.float32)
        if settings.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.trainable = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trainable, lr=LEARNING_RATES[settings.method],
                                           betas=(0.9, 0.999), weight_decay=1e-4, eps=1e-8)
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.scheduler.set_timesteps(settings.steps, device=self.device)
        self.alphas_cumprod = self.scheduler.alphas_cumprod.to(self.device)
        side = (settings.resolution or self.unet.config.sample_size * pipeline.vae_scale_factor) // pipeline.vae_scale_factor
        self.latent_shape = (self.unet.config.in_channels, side, side)
        self.empty_embeds = self.encode([""])
        self.pairs_seen = 0
        self.load_seconds = time.perf_counter() - began

    @torch.no_grad()
    def encode(self, prompts):
        """Prompt embeddings [B, L, D]."""
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=self.tokenizer.model_max_length,
                             return_tensors="pt").input_ids
        return self.text_encoder(ids.to(self.device))[0]

    def noise(self, *shape):
        """Unit noise, f32."""
        return torch.randn(*shape, device=self.device)

    def predict(self, network, latents, timesteps, prompt_embeds):
        """Guided noise prediction [B, C, h, w] in f32; empty prompt and prompt go through in one doubled batch."""
        scale = self.settings.guidance_scale
        latents, timesteps = latents.to(self.dtype), timesteps.expand(latents.shape[0])
        if scale == 1.0:
            return self.to_epsilon(network(latents, timesteps, prompt_embeds).sample.float(), latents, timesteps)
        embeds = torch.cat([self.empty_embeds.expand_as(prompt_embeds), prompt_embeds])
        unconditional, conditional = network(torch.cat([latents] * 2), torch.cat([timesteps] * 2), embeds).sample.float().chunk(2)
        return self.to_epsilon(unconditional + scale * (conditional - unconditional), latents, timesteps)

    def to_epsilon(self, output, latents, timesteps):
        if self.scheduler.config.prediction_type == "epsilon":
            return output
        alpha = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * output + (1 - alpha).sqrt() * latents.float()

    def transition(self, noise_pred, timesteps, latents):
        """Mean, std and x0 of the stochastic DDIM step (eta = 1), in f32."""
        timesteps = timesteps.expand(latents.shape[0])
        previous = (timesteps - self.scheduler.config.num_train_timesteps // self.settings.steps).clamp(min=0)
        alpha = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        alpha_prev = self.alphas_cumprod[previous].view(-1, 1, 1, 1)
        variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
        pred_x0 = (latents.float() - (1 - alpha).sqrt() * noise_pred) / alpha.sqrt()
        mean = alpha_prev.sqrt() * pred_x0 + (1 - alpha_prev - variance).sqrt() * noise_pred
        return mean, variance.sqrt(), pred_x0

    def log_prob(self, noise_pred, timesteps, latents, next_latents):
        """Log-likelihood of a transition, mean over elements [B]."""
        mean, std, _ = self.transition(noise_pred, timesteps, latents)
        density = -((next_latents.float() - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
        return density.mean(dim=(1, 2, 3))

    @torch.no_grad()
    def decode(self, latents):
        """Pictures u8 [B, H, W, 3] of scaled latents, on the CPU."""
        images = self.vae.decode(latents.to(self.dtype) / self.vae.config.scaling_factor).sample.float()
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    def update(self):
        """One optimizer step on the accumulated gradients."""
        torch.nn.utils.clip_grad_norm_(self.trainable, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def clipped_log_ratio(policy, reference, clip=0.1):
    """ln of the likelihood ratio clipped to [1 - clip, 1 + clip]."""
    return torch.log(torch.clamp(torch.exp(policy - reference), 1 - clip, 1 + clip))


def jpeg_compressibility(images):
    """Minus the size in kB of each picture as a JPEG of quality 95; higher is better."""
    scores = []
    for image in images.numpy():
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=95)
        scores.append(-len(buffer.getvalue()) / 1000)
    return torch.tensor(scores)


class Clock:
    """Seconds per phase; a GPU's queue is waited for at the end of each."""

    def __init__(self):
        self.seconds = defaultdict(float)

    @contextmanager
    def phase(self, name):
        began = time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - began

    def report(self):
        phases = {f"{name}_seconds": self.seconds[name] for name in ("rollout", "judge", "train")}
        return phases | {"seconds": sum(phases.values())}
