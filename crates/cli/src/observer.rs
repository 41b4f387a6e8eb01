//! What a training run shows and leaves behind beside `metrics.jsonl`: progress, TensorBoard events, preview grids.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_align::metrics::{GuardEvent, MemberScores, PreviewMetrics, UpdateMetrics, WatchEvent};
use seedpo_align::observer::{EffectiveSettings, Observer, ObserverError, Phase, Preview};
use seedpo_evaluate::tensorboard::EventWriter;
use seedpo_evaluate::{mean_diversity, mean_kernel_entropies};
use seedpo_tensor::Tensor;

use crate::commands::report;
use crate::context::Context;
use crate::out_of_memory;
use crate::progress::Progress;
use crate::sheet;

type Result<T> = std::result::Result<T, ObserverError>;

/// The command line's observer of a training run.
pub struct RunObserver {
    context: Context,
    folder: PathBuf,
    events: EventWriter,
    progress: Progress,
    last: String,
}

impl RunObserver {
    /// An observer that writes into the run folder; `resumed_from` is the update a resumed run continues after.
    ///
    /// Errors: the event file cannot be written.
    pub fn new(context: &Context, folder: &Path, resumed_from: Option<u64>) -> anyhow::Result<Self> {
        let events = match resumed_from {
            None => EventWriter::create(folder)?,
            Some(step) => EventWriter::resume(folder, i64::try_from(step).unwrap_or(i64::MAX))?,
        };
        let progress = Progress::new(true, "", 0, "");
        Ok(Self { context: context.clone(), folder: folder.to_path_buf(), events, progress, last: String::new() })
    }

    /// Ends the progress display and writes `report.html`, which never fails the run: the adapter is what counts.
    pub fn finish(&mut self) {
        self.progress.finish();
        let path = self.folder.join("report.html");
        if !self.folder.join("metrics.jsonl").exists() {
            return;
        }
        match report::write(&self.folder, &[], &path) {
            Ok(()) => self.context.note(&format!("report: {}", path.display())),
            Err(error) => eprintln!("warning: no {}: {error:#}", path.display()),
        }
    }
}

impl Observer for RunObserver {
    fn on_start(&mut self, settings: &EffectiveSettings) -> Result<()> {
        let width = settings.lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        for (name, value) in &settings.lines {
            self.context.note(&format!("  {name:<width$}  {value}"));
        }
        out_of_memory::measured(&settings.memory_advice);
        for warning in &settings.warnings {
            self.context.note(&format!("warning: {warning}"));
        }
        let rows: Vec<String> = settings.lines.iter().map(|(name, value)| format!("| {name} | {value} |")).collect();
        let table = format!("| setting | value |\n| --- | --- |\n{}", rows.join("\n"));
        self.events.text(settings.start_step as i64, "settings", &table)?;
        self.progress = self.context.progress("training", settings.total_steps.unwrap_or(0) as usize, "updates");
        self.progress.skip(settings.start_step as usize);
        Ok(())
    }

    fn on_phase(&mut self, phase: Phase, done: usize, total: usize) {
        let name = match phase {
            Phase::Rollout => "sampling",
            Phase::Judge => "judging",
            Phase::Train => "updating",
            Phase::Preview => "drawing previews",
        };
        self.progress.message(format!("{name} {done}/{total}{}", self.last));
    }

    fn on_update(&mut self, m: &UpdateMetrics) -> Result<()> {
        self.last = format!(
            "  reward {:.3}, loss {:.4}, accuracy {:.2}, kl {:.2e}",
            m.reward_mean, m.loss, m.implicit_accuracy, m.kl_to_reference
        );
        self.progress.message(self.last.trim_start());
        self.progress.advance(1);
        let judges: Vec<_> = by_judge("reward/judge", &m.judges).collect();
        let mut values = scalars(m);
        values.extend(judges.iter().map(|(tag, value)| (tag.as_str(), *value)));
        self.events.scalars(m.step as i64, &values)?;
        Ok(())
    }

    fn on_guard(&mut self, event: &GuardEvent) -> Result<()> {
        let sentence = event.sentence();
        self.progress.note(&format!("guard: {sentence}"));
        if let Some(step) = event.rolled_back_to {
            self.events = EventWriter::resume(&self.folder, step as i64)?;
        }
        self.events.text(event.step as i64, "guard", &sentence)?;
        Ok(())
    }

    fn on_watch(&mut self, event: &WatchEvent) -> Result<()> {
        let sentence = event.sentence();
        self.progress.note(&format!("warning: {sentence}"));
        self.events.text(event.step as i64, "watch", &sentence)?;
        Ok(())
    }

    fn on_preview(&mut self, preview: &Preview) -> Result<BTreeMap<String, f64>> {
        let sheet = sheet::write(&self.folder, preview)?;
        self.events.image(preview.step as i64, "previews", &sheet)?;
        if preview.images_per_prompt < 2 {
            return Ok(BTreeMap::new());
        }
        let per_prompt: Vec<Tensor> = preview.images.f_split(preview.images_per_prompt as i64, 0)?;
        let measured = mean_diversity(&per_prompt)?;
        let kernel = mean_kernel_entropies(&preview.latents.f_split(preview.images_per_prompt as i64, 0)?)?;
        let named = measured.named().into_iter().chain([("e1", kernel.e1), ("e2", kernel.e2)]);
        Ok(named.map(|(name, value)| (name.to_owned(), value)).collect())
    }

    fn on_preview_metrics(&mut self, m: &PreviewMetrics) -> Result<()> {
        let mut values = vec![("preview/reward_mean", m.reward_mean), ("preview/reward_std", m.reward_std)];
        values.extend(m.heldout_mean.map(|mean| ("preview/heldout_mean", mean)));
        values.extend(m.kl_to_reference.map(|kl| ("preview/kl_to_reference", kl)));
        let diversity = m.measured.iter().map(|(name, value)| (format!("diversity/{name}"), *value));
        let heldout = m.heldout.iter().map(|(judge, score)| (format!("preview/heldout/{judge}"), score.mean));
        let tags: Vec<(String, f64)> = diversity.chain(heldout).chain(by_judge("preview/judge", &m.judges)).collect();
        values.extend(tags.iter().map(|(tag, value)| (tag.as_str(), *value)));
        self.events.scalars(m.step as i64, &values)?;
        let rmse = m.measured.get("rmse").map(|v| format!(", diversity (RMSE) {v:.4}")).unwrap_or_default();
        self.progress.note(&format!("previews at update {}: reward {:.4}{rmse}", m.step, m.reward_mean));
        Ok(())
    }

    fn on_checkpoint(&mut self, step: u64, folder: &Path) -> Result<()> {
        self.events.sync()?;
        tracing::info!(step, folder = %folder.display(), "checkpoint");
        Ok(())
    }
}

/// The mean of each judge of an ensemble, tagged with its name below `tag`.
fn by_judge<'a>(tag: &'a str, judges: &'a BTreeMap<String, MemberScores>) -> impl Iterator<Item = (String, f64)> + 'a {
    judges.iter().map(move |(judge, scores)| (format!("{tag}/{judge}"), scores.mean))
}

fn scalars(m: &UpdateMetrics) -> Vec<(&str, f64)> {
    let mut values = vec![
        ("train/loss", m.loss),
        ("train/implicit_accuracy", m.implicit_accuracy),
        ("train/margin", m.margin),
        ("train/clip_fraction", m.clip_fraction),
        ("train/grad_norm", m.grad_norm),
        ("train/learning_rate", m.learning_rate),
        ("policy/ratio_mean", m.ratio_mean),
        ("policy/log_ratio_winner", m.log_ratio_winner),
        ("policy/log_ratio_loser", m.log_ratio_loser),
        ("policy/kl_to_reference", m.kl_to_reference),
        ("reward/mean", m.reward_mean),
        ("reward/std", m.reward_std),
        ("reward/min", m.reward_min),
        ("reward/max", m.reward_max),
        ("pairs/kept", m.pairs_kept as f64),
        ("pairs/tied", m.pairs_tied as f64),
        ("seconds/train", m.seconds_train),
    ];
    values.extend(m.loser_scale.map(|scale| ("train/loser_scale", scale)));
    values.extend(m.flip_mean.map(|mean| ("train/flip_mean", mean)));
    values.extend(m.reference_step.map(|step| ("policy/reference_step", step as f64)));
    // Only an iteration's first update carries its rollout.
    if m.seconds_rollout > 0.0 {
        values.extend([("seconds/rollout", m.seconds_rollout), ("seconds/judge", m.seconds_judge)]);
    }
    values
}
