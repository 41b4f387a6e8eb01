"""One D3PO iteration: two trajectories per prompt from one x_T, judged by their pictures, trained on step by step."""

import torch
from common import Clock, clipped_log_ratio, jpeg_compressibility


@torch.no_grad()
def trajectory(setup, prompt_embeds, latents):
    """All latents of one sampled trajectory, [B, steps + 1, C, h, w]."""
    visited = [latents]
    for timestep in setup.scheduler.timesteps:
        noise_pred = setup.predict(setup.unet, latents, timestep, prompt_embeds)
        mean, std, _ = setup.transition(noise_pred, timestep, latents)
        latents = mean + std * setup.noise(*mean.shape)
        visited.append(latents)
    return torch.stack(visited, dim=1)


def sample_pairs(setup, prompts, clock):
    """Both trajectories of a batch of prompts with their scores."""
    first_noise, pairs = setup.noise(len(prompts), *setup.latent_shape), []
    for _ in range(2):
        with clock.phase("rollout"):
            prompt_embeds = setup.encode(prompts)
            latents = trajectory(setup, prompt_embeds, first_noise)
        with clock.phase("judge"):
            scores = jpeg_compressibility(setup.decode(latents[:, -1])).to(setup.device)
        pairs.append((latents, scores))
    (latents_0, scores_0), (latents_1, scores_1) = pairs
    return {"latents": torch.stack([latents_0, latents_1], dim=1), "embeds": prompt_embeds,
            "scores": torch.stack([scores_0, scores_1], dim=1)}


def train(setup, samples):
    """Every step of every pair; one update per batch of pairs."""
    settings, beta, losses = setup.settings, 0.1, []
    count, steps = samples["scores"].shape[0], settings.steps
    order = torch.randperm(count).to(setup.device)
    time_order = torch.stack([torch.randperm(steps) for _ in range(count)]).to(setup.device)
    for chosen in order.split(settings.train_batch):
        rows, embeds, scores = torch.arange(len(chosen), device=setup.device), samples["embeds"][chosen], samples["scores"][chosen]
        preference = torch.sign(scores[:, 0] - scores[:, 1])
        for j in range(steps):
            at = time_order[chosen, j]
            timesteps = setup.scheduler.timesteps[at]
            margin = 0.0
            for side, sign in ((0, preference), (1, -preference)):
                trajectories = samples["latents"][chosen, side]
                latents, next_latents = trajectories[rows, at], trajectories[rows, at + 1]
                policy = setup.log_prob(setup.predict(setup.unet, latents, timesteps, embeds), timesteps, latents, next_latents)
                with torch.no_grad():
                    noise_ref = setup.predict(setup.reference, latents, timesteps, embeds)
                    reference = setup.log_prob(noise_ref, timesteps, latents, next_latents)
                margin = margin + sign * clipped_log_ratio(policy, reference)
            loss = -torch.nn.functional.logsigmoid(beta * margin).mean()
            (loss / steps).backward()
            losses.append(loss.item())
        setup.update()
    return losses


def iterate(setup):
    """Sample a pair for each prompt, then train on all of them."""
    clock, prompts, batch = Clock(), setup.settings.prompts, setup.settings.batch
    setup.unet.eval()
    batches = [sample_pairs(setup, prompts[i:i + batch], clock) for i in range(0, len(prompts), batch)]
    samples = {key: torch.cat([b[key] for b in batches]) for key in batches[0]}
    setup.unet.train()
    with clock.phase("train"):
        losses = train(setup, samples)
    return clock.report() | {"pairs": len(prompts), "steps_trained": len(prompts) * setup.settings.steps,
                             "loss": sum(losses) / len(losses), "reward_mean": samples["scores"].mean().item()}
