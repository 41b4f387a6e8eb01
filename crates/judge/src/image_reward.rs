//! ImageReward: BLIP's text encoder reads the prompt while it looks at the picture.

use std::path::{Path, PathBuf};

use seedpo_model::blip::{BertTokenizer, BlipConfig, BlipTextImage};
use seedpo_tensor::WeightFile;
use tch::{Kind, Tensor};

use crate::aesthetic::AestheticHead;
use crate::cache::Cache;
use crate::files::{Content, Found};
use crate::{ImageBatch, Judge, JudgeInfo, JudgeOptions, Preparation, Result};

/// Tokens of a row.
const LENGTH: usize = 35;
/// Mean and standard deviation of the raw reward over its training set.
const MEAN: f64 = 0.167_173_628_300_525_24;
const STD: f64 = 1.033_339_496_605_407_2;
/// Pictures whose states are kept: 197 by 1024 numbers each.
const KEPT: usize = 64;

/// The `imagereward` judge. Equal to ImageReward's `score` of v1.0.
#[derive(Debug)]
pub struct ImageReward {
    info: &'static JudgeInfo,
    network: BlipTextImage,
    tokenizer: BertTokenizer,
    head: AestheticHead,
    batch_size: usize,
    images: Cache<[u8; 32]>,
}

/// Errors: no ImageReward among the files, no vocabulary beside it, tensors missing, surplus or misshaped.
pub(crate) fn load(info: &'static JudgeInfo, found: &Found, options: &JudgeOptions) -> Result<ImageReward> {
    let (file, content) = found.one("ImageReward", |content| matches!(content, Content::ImageReward(_)))?;
    let Content::ImageReward(prefix) = content else { return Err(found.unfit("ImageReward", "another".into())) };
    let config = found.beside(file, &["med_config.json", "config.json"], Path::is_file);
    let config = config.map(|path| BlipConfig::from_file(&path)).transpose()?.unwrap_or_default();
    let network = BlipTextImage::load(file, &format!("{prefix}blip."), config, options.device, options.kind)?;
    let Some(vocabulary) = vocabulary(found, file) else {
        return Err(found.unfit("vocab.txt of bert-base-uncased beside the weights", "none".into()));
    };
    let width = network.config().hidden_size;
    Ok(ImageReward {
        info,
        tokenizer: BertTokenizer::from_vocabulary(&vocabulary, LENGTH)?,
        head: AestheticHead::load(file, &format!("{prefix}mlp."), width, options.device)?,
        network,
        batch_size: options.batch_size.max(1),
        images: Cache::new(KEPT),
    })
}

/// The vocabulary beside its weights.
pub(crate) fn vocabulary(found: &Found, file: &WeightFile) -> Option<PathBuf> {
    found.beside(file, &["vocab.txt", "tokenizer/vocab.txt", "bert/vocab.txt"], Path::is_file)
}

impl ImageReward {
    fn rewards(&self, states: &Tensor, prompts: &[&str]) -> Result<Tensor> {
        let (ids, mask) = self.tokenizer.encode(prompts)?;
        let first = self.network.encode_text(&ids, &mask, states)?.select(1, 0);
        Ok((self.head.forward(&first) - MEAN) / STD)
    }
}

impl Judge for ImageReward {
    fn name(&self) -> &str {
        self.info.name
    }

    fn unit(&self) -> &str {
        self.info.unit
    }

    fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> Result<Vec<f64>> {
        let _no_grad = tch::no_grad_guard();
        let digests = images.digests();
        let mut scores = Vec::with_capacity(prompts.len());
        let positions: Vec<usize> = (0..images.len()).collect();
        for part in positions.chunks(self.batch_size) {
            let keys: Vec<[u8; 32]> = part.iter().map(|at| digests[*at]).collect();
            let states = self.images.rows(&keys, |missing| {
                let chosen: Vec<usize> = missing.iter().map(|at| part[*at]).collect();
                let side = self.network.config().image_size as usize;
                Ok(self.network.encode_image(&Preparation::OpenAi.prepare(&images.select(&chosen), side)?)?)
            })?;
            let of: Vec<&str> = part.iter().map(|at| prompts[*at]).collect();
            let rewards = self.rewards(&states, &of)?;
            scores.extend(Vec::<f64>::try_from(rewards.to_kind(Kind::Double).to_device(tch::Device::Cpu))?);
        }
        Ok(scores)
    }
}
