//! The judges that are a CLIP and a formula: PickScore, HPS, CLIPScore, the aesthetic predictor, the step-aware model.

use seedpo_model::{ClipModel, ClipTokenizer};
use tch::{Kind, Tensor};

use crate::aesthetic::AestheticHead;
use crate::cache::Cache;
use crate::{Error, ImageBatch, Judge, JudgeInfo, Predicted, Preparation, Result, step_aware};

/// Prompts and pictures whose embeddings are kept.
const KEPT: usize = 4096;

/// From embeddings to a score.
#[derive(Debug)]
pub enum ClipFormula {
    /// exp(logit scale) · cosine: PickScore and, with the timestep, the step-aware model.
    Logit,
    /// The cosine: HPS.
    Cosine,
    /// 2.5 · max(cosine, 0), of `A photo depicts ` and the prompt: CLIPScore.
    ClipScore,
    /// An affine map of the normalised image embedding: LAION's predictor.
    Aesthetic(AestheticHead),
}

/// A judge made of a CLIP, its tokenizer, a preparation of pictures and a formula.
#[derive(Debug)]
pub struct ClipJudge {
    info: &'static JudgeInfo,
    model: ClipModel,
    tokenizer: Option<ClipTokenizer>,
    preparation: Preparation,
    formula: ClipFormula,
    batch_size: usize,
    texts: Cache<String>,
    images: Cache<[u8; 32]>,
}

impl ClipJudge {
    /// `tokenizer`: none for a formula that reads no prompt. `batch_size`: pictures in one pass of the vision tower, at least 1.
    pub fn new(
        info: &'static JudgeInfo,
        model: ClipModel,
        tokenizer: Option<ClipTokenizer>,
        preparation: Preparation,
        formula: ClipFormula,
        batch_size: usize,
    ) -> Self {
        let (texts, images) = (Cache::new(KEPT), Cache::new(KEPT));
        Self { info, model, tokenizer, preparation, formula, batch_size: batch_size.max(1), texts, images }
    }

    /// The network.
    pub fn model(&self) -> &ClipModel {
        &self.model
    }

    fn side(&self) -> i64 {
        self.model.config().vision.image_size
    }

    /// Normalised text embeddings f32 `[B, P]`.
    fn text_embeddings(&self, prompts: &[&str]) -> Result<Tensor> {
        let prefix = if matches!(self.formula, ClipFormula::ClipScore) { "A photo depicts " } else { "" };
        let texts: Vec<String> = prompts.iter().map(|prompt| format!("{prefix}{prompt}")).collect();
        let tokenizer = self.tokenizer.as_ref().ok_or_else(|| Error::Spec {
            text: self.info.name.to_owned(),
            reason: "expected a tokenizer for its prompts, found none".to_owned(),
        })?;
        self.texts.rows(&texts, |missing| {
            let some: Vec<&String> = missing.iter().map(|at| &texts[*at]).collect();
            let parts = some.chunks(self.batch_size.max(16)).map(|part| {
                let ids = tokenizer.encode(part)?;
                Ok(normalised(&self.model.text_features(&without_padding(&ids, tokenizer.eos_token_id()))?))
            });
            Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0))
        })
    }

    /// Normalised image embeddings f32 `[B, P]`.
    fn image_embeddings(&self, images: &ImageBatch) -> Result<Tensor> {
        self.images.rows(&images.digests(), |missing| {
            let parts = missing.chunks(self.batch_size).map(|part| {
                let batch = images.select(part);
                let pixels = self.preparation.prepare(&batch, self.side() as usize)?;
                Ok(normalised(&self.model.image_features(&pixels, None)?))
            });
            Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0))
        })
    }

    /// Normalised embeddings of float images `[B, 3, H, W]` in [−1, 1] at a timestep, f32 `[B, P]`.
    fn step_embeddings(&self, images: &Tensor, timestep: i64) -> Result<Tensor> {
        let parts = images.split(self.batch_size as i64, 0);
        let parts = parts.iter().map(|part| {
            let pixels = step_aware(&part.to_device(self.model.device()), self.side())?;
            let timesteps = Tensor::full([part.size()[0]], timestep, (Kind::Int64, self.model.device()));
            Ok(normalised(&self.model.image_features(&pixels, Some(&timesteps))?))
        });
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0))
    }

    fn scores(&self, images: &Tensor, prompts: &[&str]) -> Result<Vec<f64>> {
        let cosines =
            || -> Result<Tensor> { Ok((images * self.text_embeddings(prompts)?).sum_dim_intlist(-1, false, None)) };
        let scores = match &self.formula {
            ClipFormula::Logit => cosines()? * self.model.logit_scale().to_kind(Kind::Float).exp(),
            ClipFormula::Cosine => cosines()?,
            ClipFormula::ClipScore => cosines()?.clamp_min(0.0) * 2.5,
            ClipFormula::Aesthetic(head) => head.forward(images),
        };
        Ok(Vec::<f64>::try_from(scores.to_kind(Kind::Double).to_device(tch::Device::Cpu))?)
    }

    fn is_step_aware(&self) -> bool {
        self.model.config().time_conditioned
    }
}

impl Judge for ClipJudge {
    fn name(&self) -> &str {
        self.info.name
    }

    fn unit(&self) -> &str {
        self.info.unit
    }

    fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> Result<Vec<f64>> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let _no_grad = tch::no_grad_guard();
        if self.is_step_aware() {
            return self.scores(&self.step_embeddings(&(images.unit()? * 2.0 - 1.0), 0)?, prompts);
        }
        self.scores(&self.image_embeddings(images)?, prompts)
    }

    fn judge_step(&self, images: &Predicted, timestep: i64, prompts: &[&str]) -> Result<Vec<f64>> {
        let _no_grad = tch::no_grad_guard();
        if !self.is_step_aware() || images.is_empty() {
            return self.judge(images.bytes()?, prompts);
        }
        self.scores(&self.step_embeddings(images.images(), timestep)?, prompts)
    }
}

/// f32 rows of length 1; rows of zeros stay.
pub fn normalised(features: &Tensor) -> Tensor {
    let features = features.to_kind(Kind::Float);
    let norm = features.square().sum_dim_intlist(-1, true, None).sqrt();
    // F.normalize's guard.
    features / norm.clamp_min(1e-12)
}

/// Rows cut after the longest prompt's end token: the tower is causal, so what follows changes nothing.
fn without_padding(ids: &Tensor, eos: i64) -> Tensor {
    let length = ids.eq(eos).to_kind(Kind::Int64).argmax(-1, false).max().int64_value(&[]) + 1;
    ids.narrow(1, 0, length)
}
