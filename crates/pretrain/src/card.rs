//! The model card, `README.md` of the folder.

use crate::recipe::{Compute, Recipe};

/// What a card says besides the recipe.
#[derive(Debug, Clone, Copy)]
pub struct CardFacts {
    /// Parameters of VAE, text encoder and U-Net together.
    pub parameters: i64,
    /// Images it was trained on.
    pub images: usize,
    /// Steps that the VAE was trained for.
    pub vae_steps: u64,
    /// Steps that text encoder and U-Net were trained for so far.
    pub steps: u64,
    /// Time that all steps took together, in seconds; `None` where unknown.
    pub seconds: Option<f64>,
}

/// The text of the card, in Markdown with the front matter that model hubs read.
pub fn model_card(recipe: &Recipe, facts: CardFacts) -> String {
    let CardFacts { parameters, images, vae_steps, steps, seconds } = facts;
    let sizes = &recipe.sizes;
    let (latent, factor) = (recipe.latent_size(), sizes.image / recipe.latent_size());
    let compute = if recipe.compute == Compute::Bf16 { "bf16 passes, f32 weights" } else { "f32" };
    let time = seconds.map_or(String::new(), |s| format!(", {:.0} minutes of training in all", s / 60.0));
    format!(
        "---\nlicense: apache-2.0\nlibrary_name: diffusers\n\
         pipeline_tag: text-to-image\ntags: [stable-diffusion, emoji, tiny]\n---\n\n\
         # emoji-sd\n\n\
         A small Stable-Diffusion-shaped text-to-image model of emoji, {image} x {image} pixels, {millions:.1} million \
         parameters, for trying and testing alignment methods on a CPU. `StableDiffusionPipeline.from_pretrained` loads \
         this folder. Prompts are names and keywords: `red apple`, `clock face three thirty`, `animal`. Good settings: \
         DDIM, 20 steps, guidance scale 5, {image} x {image}.\n\n\
         It knows nothing but the {images} emoji it was trained on, and mostly remembers them.\n\n\
         ## Made by\n\n\
         `seedpo pretrain`, seed {seed} (docs/pretrain.md tells the recipe): the VAE (factor {factor}, latents \
         {latent} x {latent} x {channels}) for {vae_steps} steps of {vae_batch}, then text encoder and U-Net \
         ({prediction}) for {steps} steps of {batch}{time}; {compute}, averaged weights (EMA {ema}), stored as f16.\n\n\
         ## Data and licences\n\n\
         * Images: Google's Noto Emoji, under the Apache License 2.0 (the font: SIL Open Font License 1.1), in the npm \
         package emoji-datasource-google 16.0.0 (MIT), on white.\n\
         * Captions: names, short names and categories of that package; keywords of the npm package emojilib 4.0.3 (MIT).\n\
         * These weights: the same terms as the images; no rights beyond them are claimed.\n",
        image = sizes.image,
        millions = parameters as f64 / 1e6,
        seed = recipe.seed,
        channels = sizes.latent_channels,
        vae_batch = recipe.vae.batch,
        prediction = recipe.prediction,
        batch = recipe.denoiser.batch,
        ema = recipe.ema,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_states_data_licence_steps_and_time() {
        let facts = CardFacts { parameters: 9_650_000, images: 1911, vae_steps: 7, steps: 11, seconds: Some(120.0) };
        let card = model_card(&Recipe::default(), facts);
        for part in [
            "1911 emoji",
            "9.7 million",
            "7 steps of 8",
            "11 steps of 32, 2 minutes",
            "8 x 8 x 16",
            "Apache License 2.0",
            "(MIT)",
        ] {
            assert!(card.contains(part), "{part} in {card}");
        }
    }
}
