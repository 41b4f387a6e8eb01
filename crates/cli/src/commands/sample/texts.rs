//! What a picture remembers: text chunks for people's tools and for ours.

use std::path::Path;

use serde_json::{Value, json};

use super::adapters::Weighted;

/// How a picture was made.
#[derive(Debug)]
pub struct Recipe<'a> {
    pub prompt: &'a str,
    pub negative_prompt: &'a str,
    pub seed: u64,
    /// Which of the pictures of this prompt and seed.
    pub number: u64,
    pub steps: usize,
    pub eta: f64,
    pub guidance_scale: f64,
    /// Our name of the sampler, and the one that picture tools show.
    pub sampler: (String, &'static str),
    pub model: &'a str,
    /// What stands in for the model's own U-Net.
    pub unet: Option<&'a Path>,
    pub adapters: &'a [Weighted],
    /// Width and height in pixels.
    pub size: (i64, i64),
}

impl Recipe<'_> {
    /// The `parameters` chunk as AUTOMATIC1111's web UI writes it and most viewers show it.
    pub fn parameters(&self) -> String {
        let mut lines = vec![self.prompt.to_owned()];
        if !self.negative_prompt.is_empty() {
            lines.push(format!("Negative prompt: {}", self.negative_prompt));
        }
        let (width, height) = self.size;
        let mut fields = vec![
            format!("Steps: {}", self.steps),
            format!("Sampler: {}", self.sampler.1),
            format!("CFG scale: {}", self.guidance_scale),
            format!("Seed: {}", self.seed),
            format!("Size: {width}x{height}"),
            format!("Model: {}", quoted(self.model)),
        ];
        if self.eta > 0.0 {
            fields.push(format!("Eta: {}", self.eta));
        }
        if let Some(unet) = self.unet {
            fields.push(format!("U-Net: {}", quoted(&unet.display().to_string())));
        }
        if !self.adapters.is_empty() {
            let named: Vec<String> = self.adapters.iter().map(|a| format!("{}: {}", a.name(), a.weight)).collect();
            fields.push(format!("Adapters: {}", quoted(&named.join(", "))));
        }
        fields.push(format!("Number: {}", self.number));
        fields.push(format!("Version: seedpo {}", env!("CARGO_PKG_VERSION")));
        lines.push(fields.join(", "));
        lines.join("\n")
    }

    /// The `settings` chunk: JSON with everything.
    pub fn settings(&self) -> Value {
        let adapters = self.adapters.iter().map(|a| json!({"path": a.path.display().to_string(), "weight": a.weight}));
        json!({
            "prompt": self.prompt, "negative_prompt": self.negative_prompt, "seed": self.seed, "number": self.number,
            "steps": self.steps, "eta": self.eta, "guidance_scale": self.guidance_scale, "sampler": self.sampler.0,
            "model": self.model, "unet": self.unet, "adapters": adapters.collect::<Vec<_>>(), "width": self.size.0, "height": self.size.1,
            "seedpo": env!("CARGO_PKG_VERSION"),
        })
    }

    /// Keyword and text of every chunk.
    pub fn texts(&self) -> [(&'static str, String); 4] {
        [
            ("prompt", self.prompt.to_owned()),
            ("seed", self.seed.to_string()),
            ("parameters", self.parameters()),
            ("settings", self.settings().to_string()),
        ]
    }
}

/// A field of `parameters`, quoted as JSON where it would break the list.
fn quoted(field: &str) -> String {
    if field.contains([',', ':', '\n', '"']) { json!(field).to_string() } else { field.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_read_as_other_tools_write_them() {
        let adapters = [Weighted::parse("styles/ink.safetensors:0.7"), Weighted::parse("b.safetensors")];
        let recipe = Recipe {
            prompt: "red apple",
            negative_prompt: "blurry",
            seed: 7,
            number: 2,
            steps: 25,
            eta: 0.0,
            guidance_scale: 7.5,
            sampler: ("dpmpp-2m-karras".to_owned(), "DPM++ 2M Karras"),
            model: "runwayml/stable-diffusion-v1-5",
            unet: None,
            adapters: &adapters,
            size: (640, 512),
        };
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            recipe.parameters(),
            format!(
                "red apple\nNegative prompt: blurry\nSteps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 7, \
                 Size: 640x512, Model: runwayml/stable-diffusion-v1-5, Adapters: \"ink: 0.7, b: 1\", Number: 2, \
                 Version: seedpo {version}"
            )
        );
        let settings = recipe.settings();
        assert_eq!(settings["adapters"][0], json!({"path": "styles/ink.safetensors", "weight": 0.7}));
        let unet = Some(Path::new("runs/full"));
        let plain = Recipe { negative_prompt: "", adapters: &[], eta: 0.5, model: "a,b", unet, ..recipe };
        assert!(plain.parameters().starts_with("red apple\nSteps: 25"));
        assert!(plain.parameters().contains("Model: \"a,b\", Eta: 0.5, U-Net: runs/full, Number: 2"));
        assert_eq!(plain.settings()["unet"], json!("runs/full"));
    }
}
