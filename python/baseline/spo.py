"""One SPO iteration: K candidates at every step from the same x_t, judged on their decoded x0, pairs trained on at once."""

import torch
from common import Clock, clipped_log_ratio, jpeg_compressibility


def best_and_worst(scores, threshold):
    """Winner and loser of each prompt's K scores [K, B], and which prompts' pairs are clear enough to keep."""
    ordered, indices = torch.sort(scores, dim=0, descending=True)
    clear = ordered[[0, -1]].softmax(dim=0)
    return indices[0], indices[-1], clear[0] - clear[1] > threshold


@torch.no_grad()
def sample_pairs(setup, prompts, clock):
    """Walk one chain per prompt and collect a step pair wherever the candidates differ clearly."""
    settings, count = setup.settings, len(prompts)
    k, rows, kept, scores_seen = settings.candidates, torch.arange(count, device=setup.device), [], []
    with clock.phase("rollout"):
        prompt_embeds = setup.encode(prompts)
        candidate_embeds = prompt_embeds.repeat(k, 1, 1)
        latents = setup.noise(count, *setup.latent_shape)

    def judge(images_of, candidates, current, timestep):
        scores = jpeg_compressibility(setup.decode(images_of)).to(setup.device).view(k, count)
        scores_seen.append(scores)
        winner, loser, clear = best_and_worst(scores, settings.threshold)
        kept.append({"latents": current[clear], "w": candidates[winner, rows][clear], "l": candidates[loser, rows][clear],
                     "timesteps": timestep.expand(int(clear.sum())), "embeds": prompt_embeds[clear]})

    current, candidates, last = latents, None, None
    for i, timestep in enumerate(setup.scheduler.timesteps):
        if candidates is None:
            with clock.phase("rollout"):
                noise_pred = setup.predict(setup.unet, current, timestep, prompt_embeds)
                mean, std, _ = setup.transition(noise_pred, timestep, current)
                if i < settings.divert_start_step:
                    current = mean + std * setup.noise(*mean.shape)
                    continue
        else:
            with clock.phase("rollout"):
                flat = candidates.flatten(0, 1)
                noise_pred = setup.predict(setup.unet, flat, timestep, candidate_embeds)
                means, std, pred_x0 = setup.transition(noise_pred, timestep, flat)
            with clock.phase("judge"):
                judge(pred_x0, candidates, current, last)
            with clock.phase("rollout"):
                chosen = torch.randint(0, k, (count,), device=setup.device)
                current, mean, std = candidates[chosen, rows], means.unflatten(0, (k, count))[chosen, rows], std[:count]
        with clock.phase("rollout"):
            candidates, last = mean + std * setup.noise(k, *mean.shape), timestep
    with clock.phase("judge"):
        judge(candidates.flatten(0, 1), candidates, current, last)
    return {key: torch.cat([pair[key] for pair in kept]) for key in kept[0]}, torch.stack(scores_seen)


def loss_of(setup, pairs, chosen):
    """Mean loss of the chosen pairs; winners and losers go through both networks one after the other."""
    latents, timesteps, embeds = (pairs[key][chosen] for key in ("latents", "timesteps", "embeds"))
    ratios = {}
    for side in ("w", "l"):
        next_latents = pairs[side][chosen]
        policy = setup.log_prob(setup.predict(setup.unet, latents, timesteps, embeds), timesteps, latents, next_latents)
        with torch.no_grad():
            noise_ref = setup.predict(setup.reference, latents, timesteps, embeds)
            reference = setup.log_prob(noise_ref, timesteps, latents, next_latents)
        ratios[side] = clipped_log_ratio(policy, reference)
    return -torch.nn.functional.logsigmoid(10.0 * (ratios["w"] - ratios["l"])).mean()


def train(setup, pairs):
    """All kept pairs, shuffled, one update per training batch; gradients accumulate over its micro-batches."""
    settings, losses = setup.settings, []
    if pairs["latents"].shape[0] == 0:
        return losses
    for batch in torch.randperm(pairs["latents"].shape[0]).to(setup.device).split(settings.train_batch):
        for chosen in batch.split(settings.micro_batch or len(batch)):
            loss = loss_of(setup, pairs, chosen)
            (loss * len(chosen) / len(batch)).backward()
            losses.append(loss.item())
        setup.update()
    return losses


def iterate(setup):
    """For each batch of prompts: sample with the current policy, then train on its pairs."""
    clock, prompts, batch = Clock(), setup.settings.prompts, setup.settings.batch
    losses, count, scores = [], 0, []
    for i in range(0, len(prompts), batch):
        setup.unet.eval()
        pairs, seen = sample_pairs(setup, prompts[i:i + batch], clock)
        scores.append(seen)
        count += pairs["latents"].shape[0]
        setup.unet.train()
        with clock.phase("train"):
            losses += train(setup, pairs)
    return clock.report() | {"pairs": count, "steps_trained": count, "loss": sum(losses) / max(len(losses), 1),
                             "reward_mean": torch.cat(scores).mean().item()}
