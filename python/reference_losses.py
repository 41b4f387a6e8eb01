"""The transition likelihood and the pairwise losses of docs/methods.md, written from the formulas in plain PyTorch.

Nothing here shares code or shortcuts with the Rust implementation: log-probabilities are subtracted as they stand, the
clip goes through exp and ln, both sides of a pair are evaluated separately. Works in float32 and float64, on whatever
the inputs are. Used by python/fixtures/loss.py; `python python/reference_losses.py` runs its own checks.
"""

import math

import torch


def ddim_coefficients(alphas_cumprod, timestep, steps, eta):
    """Tensors a_t, a_prev, sigma for `timestep` i64 [B] (section 2): leading spacing, below 0 the first alpha."""
    previous = (timestep - len(alphas_cumprod) // steps).clamp(min=0)
    a_t, a_prev = alphas_cumprod[timestep], alphas_cumprod[previous]
    sigma = eta * ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)) ** 0.5
    return a_t, a_prev, sigma


def ddim_mean(alphas_cumprod, timestep, steps, eta, latents, noise_pred):
    """mu and sigma of the step from `latents` [B, C, h, w], and the predicted clean latents."""
    a_t, a_prev, sigma = (x.view(-1, 1, 1, 1) for x in ddim_coefficients(alphas_cumprod, timestep, steps, eta))
    x0 = (latents - (1 - a_t) ** 0.5 * noise_pred) / a_t**0.5
    mean = a_prev**0.5 * x0 + (1 - a_prev - sigma**2) ** 0.5 * noise_pred
    return mean, sigma, x0


def log_prob(next_latents, mean, sigma):
    """[B]: the mean over elements of the Gaussian's log-density."""
    per_element = -((next_latents - mean) ** 2) / (2 * sigma**2) - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
    return per_element.mean(dim=(1, 2, 3))


def denoising_log_likelihood(noise, noise_pred):
    """[B]: the surrogate of section 4.2."""
    return -0.5 * ((noise - noise_pred) ** 2).mean(dim=(1, 2, 3))


def kappa(gamma, form):
    return {"flatten": 1 / (1 + gamma), "literal-power": 1 + gamma}[form]


def pairwise(policy_w, reference_w, policy_l, reference_l, beta, gamma=0.0, form="flatten", clip=None, sign=1):
    """Mean loss and margins [B] from four log-likelihoods [B] (section 3); `sign` is SePPO's flipper s (section 4.4)."""

    def delta(policy, reference):
        r = policy - reference
        if clip is not None:
            r = torch.log(torch.clamp(torch.exp(r), 1 - clip, 1 + clip))
        return r + (1 - kappa(gamma, form)) * reference

    margin = delta(policy_w, reference_w) - sign * delta(policy_l, reference_l)
    return -torch.nn.functional.logsigmoid(beta * margin).mean(), margin


def guided(unet, latents, timestep, prompt_embeds, negative_prompt_embeds, guidance_scale):
    """eps(c) alone for w = 1, else eps(0) + w (eps(c) - eps(0)), the branches run one after the other."""
    conditional = unet(latents, timestep, prompt_embeds).sample
    if guidance_scale == 1:
        return conditional
    unconditional = unet(latents, timestep, negative_prompt_embeds.expand_as(prompt_embeds)).sample
    return unconditional + guidance_scale * (conditional - unconditional)


def step_pair(policy, reference, alphas_cumprod, case, settings):
    """Loss and margins of a `loss` case of `seedpo probe`: `policy` and `reference` map (latents, timestep) to noise."""
    steps, eta, t = settings["steps"], settings["eta"], case["timestep"]

    def likelihood(predict, side):
        latents = case["latents" if settings["method"] == "spo" else f"latents_{side}"]
        mean, sigma, _ = ddim_mean(alphas_cumprod, t, steps, eta, latents, predict(latents, t))
        return log_prob(case[f"next_latents_{side}"], mean, sigma)

    with torch.no_grad():
        reference_w, reference_l = likelihood(reference, "w"), likelihood(reference, "l")
    keys = ("beta", "gamma", "form", "clip")
    return pairwise(likelihood(policy, "w"), reference_w, likelihood(policy, "l"), reference_l, **{k: settings[k] for k in keys})


def noised_pair(policy, reference, alphas_cumprod, case, settings):
    """As `step_pair` for clean latents with one noise and timestep per pair (sections 4.2 and 4.4)."""
    t, noise = case["timestep"], case["noise"]
    a_t = alphas_cumprod[t].view(-1, 1, 1, 1)

    def predictions(name):
        noisy = a_t**0.5 * case[name] + (1 - a_t) ** 0.5 * noise
        with torch.no_grad():
            ref = reference(noisy, t)
        return policy(noisy, t), ref

    (policy_w, reference_w), (policy_l, reference_l) = (
        predictions(name) for name in ("latents_w", "latents_l" if settings["method"] == "diffusion-dpo" else "latents_ref")
    )
    gain = ((noise - reference_w) ** 2).sum(dim=(1, 2, 3)) - ((noise - policy_w.detach()) ** 2).sum(dim=(1, 2, 3))
    sign = {"sign": torch.sign(gain), "indicator": (gain > 0).to(gain.dtype), "off": 1}[settings.get("shaping") or "off"]
    likelihoods = [denoising_log_likelihood(noise, e) for e in (policy_w, reference_w, policy_l, reference_l)]
    keys = ("beta", "gamma", "form", "clip")
    return pairwise(*likelihoods, sign=sign, **{k: settings[k] for k in keys})


def supervised(policy, _reference, alphas_cumprod, case, settings):
    """Mean squared error of the predicted noise on winners (section 4.5); there is no margin: zeros [B]."""
    t, noise = case["timestep"], case["noise"]
    a_t = alphas_cumprod[t].view(-1, 1, 1, 1)
    error = (noise - policy(a_t**0.5 * case["latents_w"] + (1 - a_t) ** 0.5 * noise, t)) ** 2
    return error.mean(), torch.zeros(len(t), dtype=noise.dtype)


def self_check():
    """The densities against torch.distributions, and the loss at equal policies."""
    torch.manual_seed(0)
    x, mean, sigma = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 4, 8, 8).double(), torch.rand(2, 1, 1, 1).double()
    normal = torch.distributions.Normal(mean, sigma.expand_as(mean)).log_prob(x).mean(dim=(1, 2, 3))
    torch.testing.assert_close(log_prob(x, mean, sigma), normal)
    l_w, l_l = torch.randn(5).double(), torch.randn(5).double()
    loss, margin = pairwise(l_w, l_w, l_l, l_l, beta=10.0, clip=0.1)
    assert torch.all(margin == 0) and abs(loss.item() - math.log(2)) < 1e-15
    print("reference_losses: ok")


if __name__ == "__main__":
    self_check()
