//! How good a text-to-image model of the emoji is: does the image drawn for a name belong to that name?

use seedpo_model::{Conditioning, DiffusionModel, Policy};
use seedpo_rollout::{Ddim, GuidedPolicy, initial_noise, sample};
use seedpo_tensor::NoiseKey;
use serde::Serialize;
use tch::Tensor;

use crate::Result;
use crate::dataset::Dataset;
use crate::vae_stage::encode_all;

/// How samples are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleSettings {
    /// DDIM steps (η = 0).
    pub steps: usize,
    /// Guidance scale.
    pub guidance_scale: f64,
    /// Seed of the initial noise and of the choice of names.
    pub seed: u64,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self { steps: 20, guidance_scale: 5.0, seed: 0 }
    }
}

/// Scaled latents `[N, C, h, w]` for prompts, in their order; prompt i starts from the noise of key (seed, i).
/// `on_done(done)` is called after each batch.
pub fn sample_prompts(
    model: &DiffusionModel,
    prompts: &[String],
    settings: SampleSettings,
    on_done: &mut dyn FnMut(usize),
) -> Result<Tensor> {
    const ROWS: usize = 32;
    let config = model.unet.config();
    let [height, width] = config.sample_size.unwrap_or([8, 8]);
    let ddim = Ddim::new(&model.schedule, settings.steps, 0.0)?;
    let negative = model.encode_negative_prompt("")?;
    let scale = model.vae.config().scale_factor();
    let mut parts = Vec::new();
    for (part, chunk) in prompts.chunks(ROWS).enumerate() {
        let chunk: Vec<&str> = chunk.iter().map(String::as_str).collect();
        let conditioning =
            Conditioning::new(&model.encode_prompts(&chunk)?, &negative, (height * scale, width * scale));
        let policy = Policy::new(model, None);
        let predictor = GuidedPolicy::new(policy, &conditioning, settings.guidance_scale);
        let key = |i: usize| NoiseKey::new(settings.seed, "pretrain sample").prompt((part * ROWS + i) as u64);
        let keys: Vec<NoiseKey> = (0..chunk.len()).map(key).collect();
        let noise = initial_noise(&keys, &[config.in_channels, height, width]);
        let rows: Vec<usize> = (0..chunk.len()).collect();
        let path = sample(&predictor, &noise, &rows, &ddim, &mut |_| None, &mut |_, _| ())?;
        parts.push(path.final_latents().shallow_clone());
        on_done(part * ROWS + chunk.len());
    }
    Ok(Tensor::f_cat(&parts, 0)?)
}

/// The figure, and what it rests on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// Share of names whose nearest image carries the name or its subcategory, in [0, 1].
    pub name_or_subcategory: f64,
    /// Share of names whose nearest image carries that very name.
    pub name: f64,
    /// How many names were drawn.
    pub names: usize,
    /// Per name: asked, nearest, and whether it counts.
    pub rows: Vec<(String, String, bool)>,
}

/// Draws `names` names (a keyed choice without repeats), samples each once, and looks for the nearest training image
/// by L2 in the VAE's latent space (posterior means). Also returns the latents, scaled, `[names, C, h, w]`.
pub fn measure(
    model: &DiffusionModel,
    data: &Dataset,
    names: usize,
    settings: SampleSettings,
    on_done: &mut dyn FnMut(usize),
) -> Result<(Figure, Tensor)> {
    let order = NoiseKey::new(settings.seed, "measure names").permutation(data.len());
    let chosen: Vec<usize> = order.into_iter().take(names).collect();
    let prompts: Vec<String> = chosen.iter().map(|&i| data.emoji[i].name.clone()).collect();
    let latents = sample_prompts(model, &prompts, settings, on_done)?;
    let (known, _) = encode_all(&model.vae, data)?;
    let known = (known * model.vae.scaling_factor()).flatten(1, -1);
    let nearest = Vec::<i64>::try_from(Tensor::f_cdist(&latents.flatten(1, -1), &known, 2.0, None)?.argmin(1, false))?;
    let mut exact = 0;
    let mut rows = Vec::new();
    for (&asked, &found) in chosen.iter().zip(&nearest) {
        let (asked, found) = (&data.emoji[asked], &data.emoji[found as usize]);
        exact += usize::from(asked.name == found.name);
        let counts = asked.name == found.name || asked.subcategory == found.subcategory;
        rows.push((asked.name.clone(), found.name.clone(), counts));
    }
    let total = rows.len().max(1) as f64;
    let hits = rows.iter().filter(|r| r.2).count();
    let figure =
        Figure { name_or_subcategory: hits as f64 / total, name: exact as f64 / total, names: rows.len(), rows };
    Ok((figure, latents))
}
