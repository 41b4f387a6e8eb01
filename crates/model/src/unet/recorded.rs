//! Gradient checkpointing: a forward pass that keeps each stage's input only, and the backward pass that runs the stages
//! again one at a time.

use tch::{Kind, Tensor};

use super::stages::{Inputs, Stage, walk};
use super::{AddedConditioning, UNet2DConditionModel};
use crate::adapter::Adapter;
use crate::{Error, Result};

/// What [`UNet2DConditionModel::forward_recorded`] keeps: the input of every stage, without graph.
#[derive(Debug)]
pub struct Recording {
    /// With its graph, where the time embedding is trained.
    time: Tensor,
    prompt_embeds: Tensor,
    stages: Vec<StageInput>,
}

#[derive(Debug)]
struct StageInput {
    x: Tensor,
    skip: Option<Tensor>,
    size: Option<(i64, i64)>,
}

impl UNet2DConditionModel {
    /// As [`forward`](Self::forward), without graph; what it returns besides is enough for [`backward`](Self::backward).
    ///
    /// The memory is that of the stages' inputs: one activation for each residual block and resampling step.
    pub fn forward_recorded(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        prompt_embeds: &Tensor,
        added: Option<&AddedConditioning>,
        adapter: Option<&Adapter>,
    ) -> Result<(Tensor, Recording)> {
        // The time embedding is small: where its weights are trained, its graph is kept.
        let enter = || self.enter(latents, timesteps, prompt_embeds, added);
        let (x, time, prompt_embeds) = if self.is_trained() { tch::with_grad(enter) } else { tch::no_grad(enter) }?;
        let _frozen = tch::no_grad_guard();
        let inputs = Inputs { time: &time, prompt_embeds: &prompt_embeds, adapter };
        let mut stages = Vec::with_capacity(self.stages.len());
        let output = walk(&self.stages, x, |stage, x, skip, size| {
            let next = stage.forward(&x, skip.as_ref(), size, inputs);
            stages.push(StageInput { x, skip, size });
            next
        });
        Ok((output, Recording { time, prompt_embeds, stages }))
    }

    /// Adds the gradient of `⟨output, gradient⟩` to `.grad` of the tensors of `adapter`, the one recorded with, and of the
    /// network's own where those are trained: the same sums as the backward pass of [`forward`](Self::forward), with one
    /// stage's activations at a time, for one more forward pass.
    ///
    /// `gradient` has the shape of the output. Errors: [`Error::Argument`] for another shape.
    pub fn backward(&self, recording: Recording, gradient: &Tensor, adapter: Option<&Adapter>) -> Result<()> {
        let Recording { time: time_embedding, prompt_embeds, mut stages } = recording;
        let time = time_embedding.detach().set_requires_grad(time_embedding.requires_grad());
        let inputs = Inputs { time: &time, prompt_embeds: &prompt_embeds, adapter };
        let trained = self.is_trained();
        let adapted = |stage: &Stage| {
            let mut paths = self.projections[stage.projections.clone()].iter().map(|p| p.path.as_str());
            trained || adapter.is_some_and(|adapter| paths.any(|path| adapter.trains(path)))
        };
        let Some(first) = self.stages.iter().position(adapted) else { return Ok(()) };
        let mut gradient = gradient.detach().to_device(self.device).to_kind(self.kind());
        let mut skip_gradients: Vec<Tensor> = Vec::new();
        for stage in self.stages[first..].iter().rev() {
            let Some(input) = stages.pop() else { break };
            if stage.leaves_skip
                && let Some(more) = skip_gradients.pop()
            {
                gradient += more;
            }
            let leaf = |x: &Tensor| x.detach().set_requires_grad(true);
            let (x, skip) = (leaf(&input.x), input.skip.as_ref().map(leaf));
            let output = tch::with_grad(|| stage.forward(&x, skip.as_ref(), input.size, inputs));
            if output.size() != gradient.size() {
                let expected = format!("shape {:?}", output.size());
                let found = format!("shape {:?}", gradient.size());
                return Err(Error::Argument { what: "gradient".into(), expected, found });
            }
            seedpo_tensor::gradient::backward(&output, &gradient)?;
            gradient = x.grad();
            skip_gradients.extend(skip.map(|skip| skip.grad()));
        }
        if time.grad().defined() {
            tch::with_grad(|| (time_embedding * time.grad()).sum(Kind::Float).f_backward())?;
        }
        Ok(())
    }
}
