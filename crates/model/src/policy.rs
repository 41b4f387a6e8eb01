//! Policies: a borrowed base with an adapter, and the one thing asked of them, the noise prediction.

use tch::{Kind, Tensor};

use crate::adapter::Adapter;
use crate::model::DiffusionModel;
use crate::{Error, Result};

/// A policy or reference policy: the shared, frozen base and what is added to it. Copying it copies two pointers.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// The frozen base model.
    pub base: &'a DiffusionModel,
    /// What is added to its U-Net; `None` is the base itself, the initial reference policy.
    pub adapter: Option<&'a Adapter>,
}

/// What a noise prediction is conditioned on.
#[derive(Debug)]
pub struct Conditioning {
    /// The prompts' embeddings c, f32 `[B, L, D]`: one row per latent.
    pub prompt_embeds: Tensor,
    /// The empty (or negative) prompt's embedding ∅, f32 `[1, L, D]`; `[B, L, D]` for one per latent.
    pub negative_prompt_embeds: Tensor,
}

impl Conditioning {
    /// How many prompts there are.
    pub fn batch(&self) -> i64 {
        self.prompt_embeds.size().first().copied().unwrap_or(0)
    }

    /// The conditioning of some rows, in this order; an index may occur more than once (several candidates of one
    /// prompt). Errors: [`Error::Torch`] for an index outside `0..batch`.
    pub fn rows(&self, indices: &[i64]) -> Result<Self> {
        let index = Tensor::from_slice(indices).to_device(self.prompt_embeds.device());
        let negative = &self.negative_prompt_embeds;
        let negative = match negative.size().first() {
            Some(1) => negative.shallow_clone(),
            _ => negative.f_index_select(0, &index)?,
        };
        Ok(Self { prompt_embeds: self.prompt_embeds.f_index_select(0, &index)?, negative_prompt_embeds: negative })
    }
}

impl<'a> Policy<'a> {
    /// A policy over `base`.
    pub fn new(base: &'a DiffusionModel, adapter: Option<&'a Adapter>) -> Self {
        Self { base, adapter }
    }

    /// The noise prediction ε_θ(x_t, t, c) with guidance, f32 `[B, C, h, w]` (docs/methods.md section 1):
    /// `ε = ε(∅) + w (ε(c) − ε(∅))`. v-prediction models are converted to ε. Gradients flow where they are recorded.
    ///
    /// `latents` `[B, C, h, w]`; `timesteps` i64 `[B]`, or one for all; `guidance_scale` w: 1 is the conditional
    /// prediction alone, one pass of B rows; any other, one pass of 2B rows, negative ones first.
    ///
    /// Equal to `StableDiffusionPipeline`'s prediction, except that guidance is applied in f32 whatever the dtype.
    /// Errors: [`Error::Argument`] naming the input whose shape does not fit.
    pub fn predict_noise(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        guidance_scale: f64,
    ) -> Result<Tensor> {
        let unet = &self.base.unet;
        let timesteps = one_per_row(timesteps, latents)?;
        let output = if guidance_scale == 1.0 {
            unet.forward(latents, &timesteps, &conditioning.prompt_embeds, self.adapter)?.to_kind(Kind::Float)
        } else {
            let doubled = |x: &Tensor| Tensor::f_cat(&[x, x], 0);
            let embeds = [negative_rows(conditioning)?, conditioning.prompt_embeds.shallow_clone()];
            let output =
                unet.forward(&doubled(latents)?, &doubled(&timesteps)?, &Tensor::f_cat(&embeds, 0)?, self.adapter)?;
            let halves = output.to_kind(Kind::Float).f_chunk(2, 0)?;
            &halves[0] + (&halves[1] - &halves[0]) * guidance_scale
        };
        self.base.schedule.to_epsilon(&output, latents, &timesteps)
    }
}

/// `timesteps` as `[B]`.
fn one_per_row(timesteps: &Tensor, latents: &Tensor) -> Result<Tensor> {
    let batch = latents.size().first().copied().unwrap_or(0);
    let flat = timesteps.f_flatten(0, -1)?;
    match flat.size()[0] {
        n if n == batch => Ok(flat),
        1 => Ok(flat.f_expand([batch], false)?.contiguous()),
        n => Err(Error::Argument {
            what: "timesteps".into(),
            expected: format!("1 or {batch}, one per latent"),
            found: n.to_string(),
        }),
    }
}

/// The negative embeddings as `[B, L, D]`.
fn negative_rows(conditioning: &Conditioning) -> Result<Tensor> {
    let (positive, negative) = (&conditioning.prompt_embeds, &conditioning.negative_prompt_embeds);
    let (want, found) = (positive.size(), negative.size());
    if found.len() != 3 || want.len() != 3 || found[1..] != want[1..] || (found[0] != 1 && found[0] != want[0]) {
        return Err(Error::Argument {
            what: "negative_prompt_embeds".into(),
            expected: format!("shape [1, L, D] matching prompt_embeds {want:?}"),
            found: format!("shape {found:?}"),
        });
    }
    Ok(negative.to_kind(positive.kind()).to_device(positive.device()).f_expand(want.as_slice(), false)?)
}
