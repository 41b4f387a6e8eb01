"""Pictures from a pipeline with a LoRA adapter, as people run it: `load_lora_weights`, nothing merged, guidance on."""

import time

import torch
from common import load_pipeline
from diffusers import DDIMScheduler


class Sampling:
    """The pipeline with its adapter, and how many batches are done."""

    def __init__(self, settings):
        began = time.perf_counter()
        self.settings, self.done = settings, 0
        self.pipeline = load_pipeline(settings)
        self.pipeline.scheduler = DDIMScheduler.from_config(self.pipeline.scheduler.config)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.load_lora_weights(str(settings.adapter))
        settings.out.mkdir(parents=True, exist_ok=True)
        self.load_seconds = time.perf_counter() - began

    def iterate(self):
        """One batch of pictures, from prompts to PNG files."""
        settings, began = self.settings, time.perf_counter()
        generator = torch.Generator(settings.device).manual_seed(settings.seed + self.done)
        pictures = self.pipeline(settings.prompts, num_inference_steps=settings.steps, guidance_scale=settings.guidance_scale,
                                 height=settings.resolution, width=settings.resolution, generator=generator).images
        for number, picture in enumerate(pictures):
            picture.save(settings.out / f"{self.done:03}-{number:03}.png")
        self.done += 1
        return {"seconds": time.perf_counter() - began, "pictures": len(pictures)}
