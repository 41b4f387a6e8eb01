//! `seedpo rollout`: sample and judge pairs once, to train on them later.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use seedpo_align::run_dir::RunDir;
use seedpo_align::store::Store;
use seedpo_align::trainer::DrawnPair;
use seedpo_align::{Error, Finished, Observer, PairsFrom, Phase, Trainer};
use seedpo_evaluate::png::write_png;
use seedpo_tensor::files::{TemporaryFolder, write_atomic};
use serde_json::json;

use super::train::{Start, local_model};
use crate::context::Context;
use crate::failure::Outcome;
use crate::progress::Progress;
use crate::settings::Settings;
use crate::{interrupt, out_of_memory};

const EXAMPLES: &str = "\
Examples:
  seedpo rollout --preset spo-emoji --num-train-epochs 4 --store rollouts
  seedpo train   --preset spo-emoji --prompts [] --pairs-file rollouts --name offline
  seedpo rollout --preset d3po-emoji --num-train-epochs 8 --images pairs
  seedpo train   --preset diffusion-dpo-emoji --pairs-file pairs

Ctrl-C stops after the current iteration; the same command goes on with a store. A run on a store needs the settings that
the samples were drawn with (method or pairs, steps, eta, guidance, resolution, noise schedule); it may have any seed, beta
and gamma.";

/// Sample pairs with the initial policy, judge them and store them: offline D3PO and SPO, or pairs of pictures.
///
/// The settings are those of `seedpo train`. A store holds one safetensors file per iteration; `seedpo train --pairs-file
/// STORE` trains on them without sampling, one file in memory at a time. Pairs of pictures are PNGs and a pairs.jsonl, which
/// every method reads that trains on a dataset.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The folder of the store; one that was begun with the same settings is gone on with.
    #[arg(long, value_name = "FOLDER", visible_alias = "output", required_unless_present = "images")]
    store: Option<PathBuf>,

    /// Instead of a store, pairs of pictures: pairs.jsonl and PNGs in this folder, which must be new. Only d3po.
    #[arg(long, value_name = "FOLDER", conflicts_with = "store")]
    images: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    if args.images.is_some() {
        out_of_memory::left(
            "The folder of --images was not made: none of its pictures are kept, the same command begins anew.",
        );
    }
    let mut config = args.settings.resolve(context)?;
    ensure!(config.pairs_file.is_empty(), "--pairs-file: expected none: `seedpo rollout` makes pairs, it reads none");
    let pairs = config.resolved_method()?.pairs;
    let fits = if args.images.is_some() { pairs == PairsFrom::Trajectories } else { !pairs.from_files() };
    if !fits {
        let needed = if args.images.is_some() { "d3po, whose pairs are pictures" } else { "d3po or spo" };
        bail!("--method {}: expected a method whose pairs are sampled: {needed}", config.method);
    }
    // One pass where no length is given; updates are not counted here.
    config.num_train_epochs = config.num_train_epochs.max(1);
    config.max_train_steps = 0;
    config.validation_steps = 0;
    config.lr_scheduler = "constant".into();
    // Nothing is trained: whatever it is that will be, now the policy is the base.
    config.finetuning_type = "lora".into();
    config.model = local_model(&config.model, &config.variant, context)?;
    let start = Start::load(config, context)?;
    let at_once = start.config.rollout_batch_size.min(start.config.prompts_per_iteration) as usize;
    out_of_memory::batch("--rollout-batch-size", at_once.min(start.prompts.len()), start.model.device());
    let planned = RunDir::planned(&start.config);
    let mut trainer = Trainer::new(start.parts(planned), None)?;
    let mut progress = Sampling { context, shown: None };
    let finished = match (&args.store, &args.images) {
        (Some(folder), _) => roll_out(&mut trainer, folder, &mut progress, context)?,
        (None, Some(folder)) => draw_pictures(&mut trainer, folder, &mut progress, context)?,
        (None, None) => bail!("expected --store or --images"),
    };
    Ok(match finished {
        Finished::Completed => Outcome::Done,
        Finished::Interrupted => Outcome::Interrupted,
    })
}

fn roll_out(trainer: &mut Trainer, folder: &Path, progress: &mut Sampling, context: &Context) -> Result<Finished> {
    let finished = trainer.roll_out(folder, progress, interrupt::flag())?;
    let store = Store::open(folder)?;
    let (pairs, tied) = store.shards().iter().fold((0, 0), |(p, t), shard| (p + shard.pairs, t + shard.tied));
    let shown = folder.display();
    context.note(&format!("{shown}: {} files, {pairs} pairs with a winner, {tied} without", store.len()));
    if finished == Finished::Interrupted {
        context.note("stopped; the same command goes on");
    }
    Ok(finished)
}

/// The folder gets its name when it is whole, or with what there is after Ctrl-C.
fn draw_pictures(trainer: &mut Trainer, folder: &Path, progress: &mut Sampling, context: &Context) -> Result<Finished> {
    let shown = folder.display();
    ensure!(!folder.exists(), "--images {shown}: expected a new folder, found one; it is not overwritten");
    let temporary = TemporaryFolder::beside(folder).context("--images")?;
    let mut lines = Vec::new();
    let mut each = |pair: DrawnPair| {
        let number = lines.len();
        let names = ["winner", "loser"].map(|side| format!("{number:06}-{side}.png"));
        for (name, picture) in names.iter().zip([&pair.winner, &pair.loser]) {
            let written = write_png(&temporary.path().join(name), picture, &[("prompt", &pair.prompt)]);
            written.map_err(|e| Error::Observer(Box::new(e)))?;
        }
        lines.push(json!({ "prompt": pair.prompt, "winner": names[0], "loser": names[1] }).to_string() + "\n");
        Ok(())
    };
    let finished = trainer.draw_pictures(&mut each, progress, interrupt::flag())?;
    write_atomic(&temporary.path().join("pairs.jsonl"), lines.concat().as_bytes())?;
    temporary.finish()?;
    context.note(&format!("{shown}: {} pairs of pictures", lines.len()));
    Ok(finished)
}

/// Shows each iteration's sampling.
struct Sampling<'c> {
    context: &'c Context,
    shown: Option<(Progress, usize)>,
}

impl Observer for Sampling<'_> {
    fn on_phase(&mut self, _: Phase, done: usize, total: usize) {
        let (mut progress, before) =
            self.shown.take().unwrap_or_else(|| (self.context.progress("sampling", total, "steps"), 0));
        progress.advance(done - before.min(done));
        if done == total { progress.finish() } else { self.shown = Some((progress, done)) }
    }
}
