//! From prompts to what the U-Net is conditioned on: one text encoder (Stable Diffusion 1.x, 2.x) or two (XL).

use tch::{Kind, Tensor};

use crate::model::DiffusionModel;
use crate::policy::PromptEmbeds;
use crate::text::ClipTextModel;
use crate::tokenizer::ClipTokenizer;
use crate::{Error, Result};

/// SDXL's second tokenizer and text encoder.
#[derive(Debug)]
pub struct SecondTextEncoder {
    /// `tokenizer_2`: prompts to token ids, of the same length as the first's.
    pub tokenizer: ClipTokenizer,
    /// `text_encoder_2`, with a projection of its pooled state.
    pub text_encoder: ClipTextModel,
    /// Guidance without a negative prompt points away from zeros rather than from the empty prompt's embedding
    /// (true in SDXL base).
    pub force_zeros_for_empty_prompt: bool,
}

impl DiffusionModel {
    /// Prompt embeddings on the text encoders' device; prompts longer than L tokens are cut. No gradient is recorded.
    /// Equal to `encode_prompt` of `StableDiffusionPipeline` and `StableDiffusionXLPipeline`.
    ///
    /// Errors: [`Error::Argument`] for no prompts; what a tokenizer refuses.
    pub fn encode_prompts(&self, prompts: &[impl AsRef<str>]) -> Result<PromptEmbeds> {
        if prompts.is_empty() {
            return Err(Error::Argument {
                what: "prompts".into(),
                expected: "at least one prompt".into(),
                found: "none".into(),
            });
        }
        let input_ids = self.tokenizer.encode(prompts)?;
        let second = self.text_encoder_2.as_ref().map(|second| second.tokenizer.encode(prompts)).transpose()?;
        self.encode_tokens(&input_ids, second.as_ref())
    }

    /// As [`Self::encode_prompts`], from token ids, i64 `[B, L]`. `input_ids_2` are the second encoder's, the first's
    /// again where `None`; they differ in SDXL where a prompt is padded. A model with one encoder reads no second ids.
    ///
    /// Errors: [`Error::Argument`] for ids of a wrong shape or outside the vocabulary.
    pub fn encode_tokens(&self, input_ids: &Tensor, input_ids_2: Option<&Tensor>) -> Result<PromptEmbeds> {
        let _no_grad = tch::no_grad_guard();
        let first = self.text_encoder.forward(input_ids)?;
        let Some(second) = &self.text_encoder_2 else {
            return Ok(PromptEmbeds { prompt_embeds: first.prompt_embeds.to_kind(Kind::Float), pooled: None });
        };
        let input_ids_2 = input_ids_2.unwrap_or(input_ids);
        if input_ids_2.size() != input_ids.size() {
            return Err(Error::Argument {
                what: "input_ids_2".into(),
                expected: format!("the shape of input_ids, {:?}", input_ids.size()),
                found: format!("shape {:?}", input_ids_2.size()),
            });
        }
        let second = second.text_encoder.forward(input_ids_2)?;
        let states = [first.penultimate, second.penultimate].map(|state| state.to_kind(Kind::Float));
        Ok(PromptEmbeds {
            prompt_embeds: Tensor::f_cat(&states, -1)?,
            pooled: second.text_embeds.map(|pooled| pooled.to_kind(Kind::Float)),
        })
    }

    /// What guidance points away from, one row: the negative prompt's embeddings. Where `prompt` is empty and the
    /// folder says `force_zeros_for_empty_prompt` (SDXL base), zeros, as `StableDiffusionXLPipeline` does where no
    /// negative prompt is given.
    ///
    /// Errors: as [`Self::encode_prompts`].
    pub fn encode_negative_prompt(&self, prompt: &str) -> Result<PromptEmbeds> {
        let encoded = self.encode_prompts(&[prompt])?;
        let zeros = self.text_encoder_2.as_ref().is_some_and(|second| second.force_zeros_for_empty_prompt);
        Ok(if zeros && prompt.is_empty() { encoded.zeros_like() } else { encoded })
    }

    /// Frees the text encoders' weights, where no prompt is encoded any more: they refuse from then on. A tenth of Stable
    /// Diffusion 1.5, a fifth of XL.
    pub fn release_text_encoders(&mut self) {
        self.text_encoder.release();
        if let Some(second) = &mut self.text_encoder_2 {
            second.text_encoder.release();
        }
    }
}
