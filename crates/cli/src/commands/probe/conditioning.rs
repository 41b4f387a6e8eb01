//! What a case says the U-Net is conditioned on.

use anyhow::Result;
use seedpo_model::{AddedConditioning, AddedPair, Conditioning, DiffusionModel};
use seedpo_tensor::Tensor;

use super::Session;
use super::case::{Case, Sizes};

const EMBEDS: [&str; 3] = ["B", "L", "D"];
const NEGATIVE: [&str; 3] = ["1", "L", "D"];
const POOLED: [&str; 2] = ["B", "P"];
const NEGATIVE_POOLED: [&str; 2] = ["1", "P"];
const TIME_IDS: [&str; 2] = ["B", "6"];

/// Sizes that the U-Net fixes.
pub fn sizes_of(model: &DiffusionModel) -> Sizes {
    let config = model.unet.config();
    let width = config.cross_attention_dim.first().map(|&width| ("D", width));
    let pooled = config.text_time.map(|text_time| ("P", text_time.pooled_width()));
    Sizes::of(&[("C", config.in_channels)].into_iter().chain(width).chain(pooled).collect::<Vec<_>>())
}

/// Reads a case's conditioning, on the session's device.
pub struct Reader<'a> {
    pub case: &'a Case,
    pub sizes: &'a Sizes,
    pub session: &'a Session<'a>,
}

impl Reader<'_> {
    fn float(&self, name: &str, shape: &[&'static str]) -> Result<Tensor> {
        Ok(self.case.float(name, shape, self.sizes)?.to_device(self.session.device()))
    }

    /// `prompt_embeds`, and what SDXL adds: `pooled` and `time_ids`.
    pub fn prompt(&self, model: &DiffusionModel) -> Result<(Tensor, Option<AddedConditioning>)> {
        let embeds = self.float("prompt_embeds", &EMBEDS)?;
        if model.unet.config().text_time.is_none() {
            return Ok((embeds, None));
        }
        let added = AddedConditioning { pooled: self.float("pooled", &POOLED)?, time_ids: self.time_ids("time_ids")? };
        Ok((embeds, Some(added)))
    }

    /// Both branches of guidance. `negative_time_ids` may be absent: then they are `time_ids`; at `guidance_scale` 1,
    /// which runs the prompt's branch alone, all that is negative may be.
    pub fn guided(&self, model: &DiffusionModel, guidance_scale: f64) -> Result<Conditioning> {
        let (prompt_embeds, added) = self.prompt(model)?;
        let negative = |name: &str, shape: &[&'static str], prompt: &Tensor| match self.case.has(name) {
            false if guidance_scale == 1.0 => Ok(prompt.narrow(0, 0, 1).zeros_like()),
            _ => self.float(name, shape),
        };
        let pair = |prompt: AddedConditioning| {
            let time_ids = match self.case.has("negative_time_ids") {
                true => self.time_ids("negative_time_ids")?,
                false => prompt.time_ids.shallow_clone(),
            };
            let pooled = negative("negative_pooled", &NEGATIVE_POOLED, &prompt.pooled)?;
            Ok::<_, anyhow::Error>(AddedPair { prompt, negative: AddedConditioning { pooled, time_ids } })
        };
        Ok(Conditioning {
            negative_prompt_embeds: negative("negative_prompt_embeds", &NEGATIVE, &prompt_embeds)?,
            prompt_embeds,
            added: added.map(pair).transpose()?,
        })
    }

    /// Sizes and offsets in pixels: whole numbers, whichever dtype they are in.
    fn time_ids(&self, name: &str) -> Result<Tensor> {
        Ok(self.case.number(name, &TIME_IDS, self.sizes)?.to_device(self.session.device()))
    }
}
