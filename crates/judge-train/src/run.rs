//! One run, of any kind: batches in, updates out, held-out data in between, checkpoints, and a folder at the end.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use seedpo_model::ClipModel;
use seedpo_pretrain::metrics::Metrics;
use seedpo_pretrain::{Observer, StageReport};
use seedpo_tensor::files;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use crate::source::{Ahead, Source};
use crate::state::State;
use crate::{Error, Result, Settings, Start, export};

/// What a kind of judge is trained on and by.
pub trait Task {
    /// Where its batches come from.
    type Source: Source + 'static;

    /// `clip`, `preference` or `step-aware`.
    fn kind(&self) -> &'static str;

    /// What loads its batches.
    fn source(&self) -> Arc<Self::Source>;

    /// A batch's share of the update's loss, which has `batches` batches.
    fn loss(&self, model: &ClipModel, batch: &<Self::Source as Source>::Batch, batches: usize) -> Result<Tensor>;

    /// The most that the logit scale's logarithm may become.
    fn logit_scale_limit(&self) -> Option<f64> {
        None
    }

    /// Numbers by name on held-out data; called without gradients.
    fn evaluate(&self, model: &ClipModel) -> Result<Vec<(String, f64)>>;

    /// Held-out examples.
    fn heldout(&self) -> usize;
}

/// Where a run writes, and how often.
#[derive(Debug, Clone)]
pub struct Run {
    /// The run's folder: `checkpoint.safetensors`, `metrics.jsonl`, and `model/`, the result.
    pub out: PathBuf,
    /// How it is trained.
    pub settings: Settings,
    /// What else a resumed run must agree with: data, start, options of the kind.
    pub inputs: Map<String, Value>,
    /// Go on from the checkpoint in `out`; without it, an `out` that holds one is refused.
    pub resume: bool,
    /// Updates between checkpoints; 0: only at the end.
    pub checkpoint_every: u64,
    /// Updates between looks at held-out data; 0: only at the end.
    pub evaluate_every: u64,
    /// The number type of the result's weights.
    pub storage: Kind,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// The folder of the trained judge.
    pub model: PathBuf,
    /// Updates done; fewer than asked for where the observer stopped it. The checkpoint is there either way.
    pub step: u64,
    /// The last look at held-out data.
    pub heldout: Vec<(String, f64)>,
}

/// Trains, and writes the judge to `model/` of the run's folder.
///
/// On a CPU with one number of threads the result depends on settings, data and start alone, resumed or not.
/// Errors: a folder in use, another run's checkpoint, another start than it began with; [`Error::NotFinite`], with the last
/// checkpoint intact.
pub fn run<T: Task>(run: &Run, task: &T, start: Start, observer: &mut dyn Observer) -> Result<Finished> {
    run.settings.validate()?;
    let tokenizer = Arc::clone(&start.tokenizer);
    let mut session = Session::begin(run, task, start)?;
    let ahead = Ahead::start(task.source(), session.state.step, run.settings.steps);
    while session.state.step < run.settings.steps {
        let begun = Instant::now();
        let mut report = session.update(ahead.next()?)?;
        let done = session.state.step;
        if due(done, run.evaluate_every) || done == run.settings.steps {
            session.heldout = session.evaluate()?;
            report.metrics.extend(session.heldout.clone());
            if !session.heldout.is_empty() {
                observer.on_note(&session.sentence());
            }
        }
        session.metrics.append(&report, begun.elapsed().as_secs_f64())?;
        observer.on_step(&report);
        let stop = observer.stop();
        if stop || due(done, run.checkpoint_every) || done == run.settings.steps {
            session.state.save(&session.checkpoint, &session.identity)?;
        }
        if stop && done < run.settings.steps {
            return Ok(session.finished());
        }
    }
    if session.heldout.is_empty() {
        session.heldout = session.evaluate()?;
    }
    let finished = session.finished();
    let model = &session.state.model;
    export(&finished.model, model.config(), model.parameters(), &tokenizer, run.storage)?;
    Ok(finished)
}

/// A run under way.
struct Session<'a, T> {
    run: &'a Run,
    task: &'a T,
    state: State,
    metrics: Metrics,
    checkpoint: PathBuf,
    identity: Map<String, Value>,
    heldout: Vec<(String, f64)>,
    /// Held as long as the run goes on.
    _lock: File,
}

impl<'a, T: Task> Session<'a, T> {
    fn begin(run: &'a Run, task: &'a T, start: Start) -> Result<Self> {
        let checkpoint = run.out.join("checkpoint.safetensors");
        let metrics = Metrics::at(run.out.join("metrics.jsonl"));
        let mut identity = Map::from_iter([("kind".to_owned(), Value::from(task.kind()))]);
        if let Ok(Value::Object(settings)) = serde_json::to_value(&run.settings) {
            identity.extend(settings);
        }
        identity.extend(run.inputs.clone());
        identity.insert("init".to_owned(), start.fingerprint()?.into());
        let mut state = State::new(start, &run.settings)?;
        match (checkpoint.exists(), run.resume) {
            (true, true) => {}
            (true, false) => {
                let reason = "this folder holds a run already; go on with --resume, or name another folder with --out";
                return Err(Error::data(&run.out, reason));
            }
            (false, true) => {
                let reason = "expected the checkpoint of a run to go on with, found none; start it without --resume";
                return Err(Error::data(&run.out, reason));
            }
            (false, false) => std::fs::create_dir_all(&run.out).map_err(|e| seedpo_tensor::Error::io(&run.out, e))?,
        }
        let busy =
            "another process is training in this folder; wait for it, stop it, or name another folder with --out";
        let lock = files::lock(&run.out.join(files::LOCK_FILE))?.ok_or_else(|| Error::data(&run.out, busy))?;
        if run.resume {
            state.load(&checkpoint, &identity)?;
        }
        metrics.rewind(task.kind(), state.step)?;
        Ok(Self { run, task, state, metrics, checkpoint, identity, heldout: Vec::new(), _lock: lock })
    }

    fn update(&mut self, batches: Vec<<T::Source as Source>::Batch>) -> Result<StageReport> {
        let (mut gradients, mut value) = (Vec::new(), 0.0);
        for batch in &batches {
            let loss = self.task.loss(&self.state.model, batch, batches.len())?;
            value += loss.double_value(&[]);
            self.state.add_gradient(&loss, &mut gradients)?;
        }
        let step = self.state.step + 1;
        if !value.is_finite() {
            return Err(Error::NotFinite { step, what: "loss", value });
        }
        let (norm, lr) = self.state.update(gradients, self.task.logit_scale_limit())?;
        let scale = self.state.model.logit_scale().double_value(&[]).exp();
        let metrics = vec![("grad_norm".to_owned(), norm), ("logit_scale".to_owned(), scale)];
        Ok(StageReport { stage: self.task.kind(), step, total: self.run.settings.steps, loss: value, lr, metrics })
    }

    fn evaluate(&self) -> Result<Vec<(String, f64)>> {
        if self.task.heldout() == 0 {
            return Ok(Vec::new());
        }
        tch::no_grad(|| self.task.evaluate(&self.state.model))
    }

    /// What the last look at held-out data found.
    fn sentence(&self) -> String {
        let numbers = self.heldout.iter().map(|(name, value)| format!("{} {value:.4}", name.replace("heldout_", "")));
        let numbers: Vec<String> = numbers.collect();
        format!("step {}: {} held out: {}", self.state.step, self.task.heldout(), numbers.join(", "))
    }

    fn finished(&self) -> Finished {
        let heldout = self.heldout.clone();
        Finished { model: self.run.out.join("model"), step: self.state.step, heldout }
    }
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
