//! What a report shows: plain structures that the command line fills.

use crate::png::encode_png;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use tch::Tensor;

/// Everything in one report. Every text is shown as is (escaped), nothing is interpreted as HTML.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ReportData {
    /// The page's title, e.g. `SEE-SPO on emoji-sd`.
    pub title: String,
    /// One or two sentences under it; where empty they are made from the curves.
    pub summary: String,
    /// Small facts beside the title: date, version, run folder.
    pub facts: Vec<String>,
    /// The judge that was trained on.
    pub reward: JudgeLabel,
    /// The judge that was only looked at, where one is set.
    pub heldout: Option<JudgeLabel>,
    /// Curves; the first run is the report's subject, the others are there to compare.
    pub runs: Vec<RunSeries>,
    /// Figures that cannot be read off the curves, e.g. a win rate; shown beside those that can.
    pub headlines: Vec<Headline>,
    /// Images before and after.
    pub grids: Vec<ImageGrid>,
    /// The command that repeats the run, if known.
    pub command: Option<String>,
    /// Settings, in titled groups.
    pub settings: Vec<SettingsGroup>,
    /// Code that uses the result; see [`diffusers_snippet`].
    pub snippet: Option<String>,
    /// Versions, hardware, hashes of inputs.
    pub environment: Vec<(String, String)>,
}

/// A judge's name and unit, for titles and axes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct JudgeLabel {
    /// E.g. `jpeg-compressibility`.
    pub name: String,
    /// E.g. `kB`.
    pub unit: String,
}

/// A titled group of settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SettingsGroup {
    /// E.g. `Objective`.
    pub title: String,
    /// Name and value.
    pub rows: Vec<(String, String)>,
}

/// A figure worth reading first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Headline {
    /// What it is, e.g. `Win rate over the base model`.
    pub label: String,
    /// The figure with its unit, e.g. `87 %`.
    pub value: String,
    /// One short line under it, e.g. `95 % interval 79 to 92 %`.
    pub detail: String,
}

/// The curves of one run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunSeries {
    /// The name in legends, e.g. `SEE-SPO, γ = 1`.
    pub name: String,
    /// Points (step, value) by metric, steps ascending. Metrics are named by their path in `metrics.jsonl`, e.g.
    /// `update.loss` or `preview.measured.rmse` (likewise `psnr`, `ssim`, `entropy`, `e1`, `e2`); unknown ones are shown
    /// under their name.
    pub series: BTreeMap<String, Vec<(f64, f64)>>,
}

impl RunSeries {
    /// Reads the `metrics.jsonl` of a run: one JSON object per line with a `step`. A numeric field becomes the metric
    /// `<kind>.<field>`, a field of a nested object `<kind>.<object>.<field>`; `null`, which is how JSON writes NaN,
    /// becomes NaN. A last line cut off by a killed run is skipped.
    ///
    /// Errors: [`Error::File`]; [`Error::Format`] naming the line that is no object with a numeric `step`.
    pub fn from_jsonl(name: &str, path: &Path) -> Result<Self> {
        let text = seedpo_tensor::read_text(path)?;
        let mut run = Self { name: name.to_owned(), series: BTreeMap::new() };
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let parsed: std::result::Result<serde_json::Value, _> = serde_json::from_str(line);
            let is_torn_tail = !text.ends_with('\n') && index + 1 == text.lines().count();
            let reason = match parsed {
                Ok(value) => match run.add_line(&value) {
                    Some(()) => continue,
                    None => "expected an object with a numeric `step`".to_owned(),
                },
                Err(_) if is_torn_tail => break,
                Err(error) => error.to_string(),
            };
            return Err(Error::Format { path: path.to_path_buf(), reason: format!("line {}: {reason}", index + 1) });
        }
        Ok(run)
    }

    fn add_line(&mut self, line: &serde_json::Value) -> Option<()> {
        let object = line.as_object()?;
        let step = object.get("step")?.as_f64()?;
        let kind = object.get("kind").and_then(|kind| kind.as_str()).unwrap_or("update");
        for (field, value) in object.iter().filter(|(field, _)| !matches!(field.as_str(), "step" | "kind")) {
            self.add_value(&format!("{kind}.{field}"), step, value);
        }
        Some(())
    }

    fn add_value(&mut self, key: &str, step: f64, value: &serde_json::Value) {
        match value {
            serde_json::Value::Object(inner) => {
                inner.iter().for_each(|(field, value)| self.add_value(&format!("{key}.{field}"), step, value));
            }
            serde_json::Value::Null => self.push(key, step, f64::NAN),
            number => {
                if let Some(number) = number.as_f64() {
                    self.push(key, step, number);
                }
            }
        }
    }

    /// Adds a point to a metric.
    pub fn push(&mut self, key: &str, step: f64, value: f64) {
        self.series.entry(key.to_owned()).or_default().push((step, value));
    }

    /// The points of a metric; empty if it was never logged.
    pub fn points(&self, key: &str) -> &[(f64, f64)] {
        self.series.get(key).map_or(&[], Vec::as_slice)
    }

    /// The first and last finite values of a metric.
    pub fn first_last(&self, key: &str) -> Option<(f64, f64)> {
        let mut finite = self.points(key).iter().map(|point| point.1).filter(|value| value.is_finite());
        let first = finite.next()?;
        Some((first, finite.next_back().unwrap_or(first)))
    }
}

/// Images in rows of one prompt each and columns of one condition each (before, after, ...).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImageGrid {
    /// The grid's title.
    pub title: String,
    /// One line under it; empty for none.
    pub note: String,
    /// Headings of the columns, e.g. `Before`, `After, γ = 1`.
    pub columns: Vec<String>,
    /// One row per prompt.
    pub rows: Vec<GridRow>,
}

/// One prompt's images.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GridRow {
    /// The prompt.
    pub prompt: String,
    /// Per column, the images shown in it (usually the same seeds in every column).
    pub cells: Vec<Vec<GridImage>>,
}

/// One image of a grid.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GridImage {
    /// A PNG file's bytes.
    pub png: Vec<u8>,
    /// A short line under it, e.g. its score; empty for none.
    pub caption: String,
}

impl GridImage {
    /// Encodes u8 `[H, W, 3]`. Errors: those of [`encode_png`].
    pub fn from_tensor(image: &Tensor, caption: impl Into<String>) -> Result<Self> {
        Ok(Self { png: encode_png(image, &[])?, caption: caption.into() })
    }

    /// Width and height from the PNG's header; `None` if these are no PNG's bytes.
    pub fn size(&self) -> Option<(u32, u32)> {
        let header = self.png.strip_prefix(b"\x89PNG\r\n\x1a\n")?.get(4..16)?.strip_prefix(b"IHDR")?;
        let (width, height) = header.split_first_chunk::<4>()?;
        Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height.first_chunk::<4>()?)))
    }
}

/// What a run has made of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aligned<'a> {
    /// A folder with an adapter.
    Adapter(&'a str),
    /// A folder with a whole U-Net in `unet/`.
    UNet(&'a str),
}

/// Python code that loads a model folder and a run's result with diffusers and draws one image.
pub fn diffusers_snippet(model: &str, aligned: Aligned, prompt: &str, guidance_scale: f64, steps: usize) -> String {
    // JSON strings are Python strings, whatever the path or prompt holds.
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let single = [".safetensors", ".ckpt"].iter().any(|ending| model.ends_with(ending));
    let load = if single { "from_single_file" } else { "from_pretrained" };
    let (class, put) = match aligned {
        Aligned::Adapter(folder) => {
            ("", format!("pipe.load_lora_weights({}, weight_name=\"pytorch_lora_weights.safetensors\")", quote(folder)))
        }
        Aligned::UNet(folder) => (
            ", UNet2DConditionModel",
            format!("pipe.unet = UNet2DConditionModel.from_pretrained({}, subfolder=\"unet\")", quote(folder)),
        ),
    };
    format!(
        "from diffusers import DDIMScheduler, StableDiffusionPipeline{class}\n\n\
         pipe = StableDiffusionPipeline.{load}({}, safety_checker=None)\n\
         pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)\n\
         {put}\n\
         image = pipe({}, num_inference_steps={steps}, guidance_scale={guidance_scale}).images[0]\n\
         image.save(\"aligned.png\")\n",
        quote(model),
        quote(prompt)
    )
}

/// A run of two previews and one update, for tests.
#[cfg(test)]
pub(super) fn small_report() -> ReportData {
    let mut run = RunSeries { name: "a".to_owned(), ..RunSeries::default() };
    for (step, reward, rmse) in [(0.0, -4.0, 60.0), (10.0, -3.0, 57.0)] {
        run.push("preview.reward_mean", step, reward);
        run.push("preview.measured.rmse", step, rmse);
    }
    run.push("update.kl_to_reference", 1.0, 0.25);
    run.push("update.speed_of_light", 1.0, 3e8);
    run.push("update.iteration", 1.0, 0.0);
    let reward = JudgeLabel { name: "judge".to_owned(), unit: "u".to_owned() };
    ReportData { runs: vec![run], reward, ..ReportData::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_text(text: &str) -> Result<RunSeries> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        RunSeries::from_jsonl("run", &path)
    }

    #[test]
    fn metrics_files_become_series() {
        let run = from_text(concat!(
            "{\"kind\":\"preview\",\"step\":0,\"reward_mean\":-3.5,\"measured\":{\"rmse\":60.0}}\n",
            "{\"kind\":\"update\",\"step\":1,\"loss\":0.75,\"note\":\"text is skipped\"}\n\n",
            "{\"kind\":\"update\",\"step\":2,\"loss\":null}\n",
            "{\"kind\":\"update\",\"step\":3,\"loss\":0.5}\n",
            "{\"kind\":\"update\",\"st",
        ))
        .unwrap();
        assert_eq!(run.points("preview.measured.rmse"), [(0.0, 60.0)]);
        assert_eq!(run.points("preview.reward_mean"), [(0.0, -3.5)]);
        assert_eq!(run.points("update.loss")[0], (1.0, 0.75));
        assert!(run.points("update.loss")[1].1.is_nan());
        assert_eq!(run.first_last("update.loss"), Some((0.75, 0.5)));
        assert_eq!(run.first_last("preview.reward_mean"), Some((-3.5, -3.5)));
        assert_eq!((run.first_last("absent"), run.points("update.note")), (None, &[][..]));
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, part) in [
            ("{\"step\":1}\n{oops}\n{\"step\":2}\n", "line 2"),
            ("[1]\n", "line 1"),
            ("{\"loss\":1}\n", "`step`"),
            ("{\"step\":\"x\"}\n", "`step`"),
        ] {
            let error = from_text(text).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("metrics.jsonl"), "{error}");
        }
        assert!(from_text("").unwrap().series.is_empty());
    }

    #[test]
    fn image_sizes_are_read_from_the_header() {
        let image = Tensor::zeros([5, 9, 3], (tch::Kind::Uint8, tch::Device::Cpu));
        assert_eq!(GridImage::from_tensor(&image, "").unwrap().size(), Some((9, 5)));
        assert_eq!(GridImage { png: b"\x89PNG\r\n\x1a\n".to_vec(), caption: String::new() }.size(), None);
        assert_eq!(GridImage::default().size(), None);
    }

    #[test]
    fn the_snippet_quotes_what_it_is_given() {
        let code = diffusers_snippet("a \"b\"", Aligned::Adapter("C:\\runs"), "red\napple", 5.0, 20);
        assert!(code.contains(r#""a \"b\"""#) && code.contains(r#""C:\\runs""#) && code.contains(r#""red\napple""#));
        assert!(code.contains("guidance_scale=5)") && code.contains("num_inference_steps=20"), "{code}");
    }
}
