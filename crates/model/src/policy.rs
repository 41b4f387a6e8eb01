//! Policies: a borrowed base with an adapter, and the one thing asked of them, the noise prediction.

use tch::{Device, Kind, Tensor};

use crate::adapter::Adapter;
use crate::model::DiffusionModel;
use crate::unet::{AddedConditioning, Recording, UNet2DConditionModel};
use crate::weights::PolicyWeights;
use crate::{Error, Result};

/// A policy or reference policy: the shared base with what is added to its U-Net, or with another U-Net in that one's
/// place. Copying it copies pointers.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// The base model.
    base: &'a DiffusionModel,
    /// The U-Net that is asked: the base's, or one that was trained whole.
    unet: &'a UNet2DConditionModel,
    /// What is added to it; `None` is the U-Net itself: with the base's, the initial reference policy.
    adapter: Option<&'a Adapter>,
}

/// What the text encoders make of prompts.
#[derive(Debug, PartialEq)]
pub struct PromptEmbeds {
    /// f32 `[B, L, D]`.
    pub prompt_embeds: Tensor,
    /// The pooled embedding that SDXL's U-Net reads too, f32 `[B, P]`; `None` for every other model.
    pub pooled: Option<Tensor>,
}

impl PromptEmbeds {
    /// The rows of all `parts`, one after another. Errors: [`Error::Torch`] for no parts, or widths that differ.
    pub fn cat(parts: &[&Self]) -> Result<Self> {
        let embeds: Vec<&Tensor> = parts.iter().map(|part| &part.prompt_embeds).collect();
        let pooled: Option<Vec<&Tensor>> = parts.iter().map(|part| part.pooled.as_ref()).collect();
        Ok(Self {
            prompt_embeds: Tensor::f_cat(&embeds, 0)?,
            pooled: pooled.map(|pooled| Tensor::f_cat(&pooled, 0)).transpose()?,
        })
    }

    /// Zeros of the same shapes.
    pub fn zeros_like(&self) -> Self {
        Self { prompt_embeds: self.prompt_embeds.zeros_like(), pooled: self.pooled.as_ref().map(Tensor::zeros_like) }
    }

    /// The same on `device`.
    pub fn to_device(&self, device: Device) -> Self {
        Self {
            prompt_embeds: self.prompt_embeds.to_device(device),
            pooled: self.pooled.as_ref().map(|pooled| pooled.to_device(device)),
        }
    }
}

/// What a noise prediction is conditioned on.
#[derive(Debug)]
pub struct Conditioning {
    /// The prompts' embeddings c, f32 `[B, L, D]`: one row per latent.
    pub prompt_embeds: Tensor,
    /// The empty (or negative) prompt's embedding ∅, f32 `[1, L, D]`; `[B, L, D]` for one per latent.
    pub negative_prompt_embeds: Tensor,
    /// What SDXL's U-Net reads besides; `None` for every other.
    pub added: Option<AddedPair>,
}

/// SDXL's added conditioning of both branches of guidance.
#[derive(Debug)]
pub struct AddedPair {
    /// The prompts': one row per latent.
    pub prompt: AddedConditioning,
    /// The empty (or negative) prompt's: one row for all, or one per latent.
    pub negative: AddedConditioning,
}

impl AddedPair {
    fn rows(&self, index: &Tensor) -> Result<Self> {
        Ok(Self {
            prompt: self.prompt.map(|x| Ok(x.f_index_select(0, index)?))?,
            negative: self.negative.map(|x| shared_or_selected(x, index))?,
        })
    }

    /// Both branches' as one batch of 2B rows, negative ones first.
    fn guided(&self) -> Result<AddedConditioning> {
        let both = |what: &str, prompt: &Tensor, negative: &Tensor| {
            let negative = expanded(what, prompt, negative)?;
            Ok::<_, Error>(Tensor::f_cat(&[&negative, prompt], 0)?)
        };
        let (prompt, negative) = (&self.prompt, &self.negative);
        Ok(AddedConditioning {
            pooled: both("negative pooled", &prompt.pooled, &negative.pooled)?,
            time_ids: both("negative time_ids", &prompt.time_ids, &negative.time_ids)?,
        })
    }
}

impl Conditioning {
    /// Conditioning for pictures of `size` (height, width; pixels). SDXL's time ids say that the picture was neither
    /// scaled nor cropped, as `StableDiffusionXLPipeline` does where nothing else is asked for.
    pub fn new(prompts: &PromptEmbeds, negative: &PromptEmbeds, size: (i64, i64)) -> Self {
        let added = prompts.pooled.as_ref().zip(negative.pooled.as_ref());
        let added = added.map(|(prompt, negative)| AddedPair {
            prompt: AddedConditioning::uncropped(prompt, size),
            negative: AddedConditioning::uncropped(negative, size),
        });
        Self {
            prompt_embeds: prompts.prompt_embeds.shallow_clone(),
            negative_prompt_embeds: negative.prompt_embeds.shallow_clone(),
            added,
        }
    }

    /// How many prompts there are.
    pub fn batch(&self) -> i64 {
        self.prompt_embeds.size().first().copied().unwrap_or(0)
    }

    /// The conditioning of some rows, in this order; an index may occur more than once (several candidates of one
    /// prompt). Errors: [`Error::Torch`] for an index outside `0..batch`.
    pub fn rows(&self, indices: &[i64]) -> Result<Self> {
        let index = Tensor::from_slice(indices).to_device(self.prompt_embeds.device());
        Ok(Self {
            prompt_embeds: self.prompt_embeds.f_index_select(0, &index)?,
            negative_prompt_embeds: shared_or_selected(&self.negative_prompt_embeds, &index)?,
            added: self.added.as_ref().map(|added| added.rows(&index)).transpose()?,
        })
    }
}

impl<'a> Policy<'a> {
    /// A policy over `base`: with an adapter, or as it is.
    pub fn new(base: &'a DiffusionModel, adapter: Option<&'a Adapter>) -> Self {
        Self { base, unet: &base.unet, adapter }
    }

    /// The policy of `weights` over `base`; `None` is the base itself.
    pub fn of(base: &'a DiffusionModel, weights: Option<&'a PolicyWeights>) -> Self {
        match weights {
            None => Self::new(base, None),
            Some(PolicyWeights::Lora(adapter)) => Self::new(base, Some(adapter)),
            Some(PolicyWeights::Full(unet)) => Self { base, unet, adapter: None },
        }
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
        let timesteps = one_per_row(timesteps, latents)?;
        let output = self.predict_output(latents, &timesteps, conditioning, guidance_scale)?;
        self.base.schedule.to_epsilon(&output, latents, &timesteps)
    }

    /// The network's guided output as it is, ε or v by the schedule's `prediction_type`; otherwise as
    /// [`predict_noise`](Self::predict_noise). `timesteps` may be fractional, f32: samplers that work on noise levels
    /// visit such.
    pub fn predict_output(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        guidance_scale: f64,
    ) -> Result<Tensor> {
        let inputs = Inputs::new(latents, timesteps, conditioning, guidance_scale)?;
        let Inputs { latents, timesteps, prompt_embeds, added } = &inputs;
        let output = self.unet.forward(latents, timesteps, prompt_embeds, added.as_ref(), self.adapter)?;
        guided(&output, guidance_scale)
    }

    /// As [`predict_noise`](Self::predict_noise), without graph; what it returns besides is enough for
    /// [`backward`](Self::backward). Gradient checkpointing: see [`UNet2DConditionModel::forward_recorded`].
    ///
    /// [`UNet2DConditionModel::forward_recorded`]: crate::UNet2DConditionModel::forward_recorded
    pub fn predict_noise_recorded(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        guidance_scale: f64,
    ) -> Result<(Tensor, NoiseRecording)> {
        let timesteps = one_per_row(timesteps, latents)?;
        let inputs = Inputs::new(latents, &timesteps, conditioning, guidance_scale)?;
        let (output, unet) = self.unet.forward_recorded(
            &inputs.latents,
            &inputs.timesteps,
            &inputs.prompt_embeds,
            inputs.added.as_ref(),
            self.adapter,
        )?;
        let output = output.set_requires_grad(true);
        // What follows the network is linear and small: its graph is kept.
        let noise = tch::with_grad(|| {
            let output = guided(&output, guidance_scale)?;
            self.base.schedule.to_epsilon(&output, latents, &timesteps)
        })?;
        Ok((noise.detach(), NoiseRecording { unet, output, noise }))
    }

    /// Adds the gradient of `⟨ε_θ, gradient⟩` to `.grad` of the trained tensors; `gradient` `[B, C, h, w]`.
    /// Errors: [`Error::Argument`] for another shape.
    pub fn backward(&self, recording: NoiseRecording, gradient: &Tensor) -> Result<()> {
        let NoiseRecording { unet, output, noise } = recording;
        if gradient.size() != noise.size() {
            return Err(Error::Argument {
                what: "gradient".into(),
                expected: format!("shape {:?}", noise.size()),
                found: format!("shape {:?}", gradient.size()),
            });
        }
        tch::with_grad(|| (noise * gradient).sum(Kind::Float).f_backward())?;
        self.unet.backward(unet, &output.grad(), self.adapter)
    }
}

/// What [`Policy::predict_noise_recorded`] keeps for [`Policy::backward`].
#[derive(Debug)]
pub struct NoiseRecording {
    unet: Recording,
    /// The network's output, and the noise made of it, with the graph between them.
    output: Tensor,
    noise: Tensor,
}

/// What the network is run on: under guidance every row twice, negative ones first.
struct Inputs {
    latents: Tensor,
    timesteps: Tensor,
    prompt_embeds: Tensor,
    added: Option<AddedConditioning>,
}

impl Inputs {
    fn new(latents: &Tensor, timesteps: &Tensor, conditioning: &Conditioning, guidance_scale: f64) -> Result<Self> {
        let timesteps = one_per_row(timesteps, latents)?;
        let positive = &conditioning.prompt_embeds;
        if guidance_scale == 1.0 {
            let added = conditioning.added.as_ref().map(|added| added.prompt.map(|x| Ok(x.shallow_clone())));
            let (latents, prompt_embeds) = (latents.shallow_clone(), positive.shallow_clone());
            return Ok(Self { latents, timesteps, prompt_embeds, added: added.transpose()? });
        }
        let doubled = |x: &Tensor| Tensor::f_cat(&[x, x], 0);
        let negative = expanded("negative_prompt_embeds", positive, &conditioning.negative_prompt_embeds)?;
        Ok(Self {
            latents: doubled(latents)?,
            timesteps: doubled(&timesteps)?,
            prompt_embeds: Tensor::f_cat(&[&negative, positive], 0)?,
            added: conditioning.added.as_ref().map(AddedPair::guided).transpose()?,
        })
    }
}

/// The network's output for [`Inputs`] with guidance applied, f32.
fn guided(output: &Tensor, guidance_scale: f64) -> Result<Tensor> {
    let output = output.to_kind(Kind::Float);
    if guidance_scale == 1.0 {
        return Ok(output);
    }
    let halves = output.f_chunk(2, 0)?;
    Ok(&halves[0] + (&halves[1] - &halves[0]) * guidance_scale)
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

/// `negative` as it is where one row serves all, else its rows at `index`.
fn shared_or_selected(negative: &Tensor, index: &Tensor) -> Result<Tensor> {
    Ok(match negative.size().first() {
        Some(1) => negative.shallow_clone(),
        _ => negative.f_index_select(0, index)?,
    })
}

/// The negative branch's tensor in the shape, kind and place of the prompt's. Errors: [`Error::Argument`] naming `what`.
fn expanded(what: &str, prompt: &Tensor, negative: &Tensor) -> Result<Tensor> {
    let (want, found) = (prompt.size(), negative.size());
    let fits = found.len() == want.len() && found.len() >= 2 && found[1..] == want[1..];
    if !fits || (found[0] != 1 && found[0] != want[0]) {
        return Err(Error::Argument {
            what: what.into(),
            expected: format!("one row, or as many as the prompts' {want:?}"),
            found: format!("shape {found:?}"),
        });
    }
    Ok(negative.to_kind(prompt.kind()).to_device(prompt.device()).f_expand(want.as_slice(), false)?)
}
