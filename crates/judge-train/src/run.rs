//! One run, of any kind: batches in, updates out, held-out data in between, checkpoints, and a folder at the end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use seedpo_align::trainer::BadPairs;
use seedpo_model::ClipModel;
use seedpo_pretrain::metrics::Metrics;
use seedpo_pretrain::{Observer, StageReport};
use seedpo_tensor::files;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use crate::heldout::Heldout;
use crate::source::{Ahead, Loaded, Source, Unreadable};
use crate::state::{self, State};
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

    /// Numbers by name on held-out data, of which `heldout` keeps what the next look needs again; called without gradients.
    fn evaluate(&self, model: &ClipModel, heldout: &mut Heldout) -> Result<Vec<(String, f64)>>;

    /// Held-out examples.
    fn heldout(&self) -> usize;
}

/// Where a run writes, and how often.
#[derive(Debug, Clone)]
pub struct Run {
    /// The run's folder: `checkpoint.safetensors`, `metrics.jsonl`, `bad_rows.jsonl`, and `model/`, the result.
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
    /// The share of the dataset's rows, in [0, 1], that may be bad or turn out to be: more end the run.
    pub bad_rows_limit: f64,
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
    /// Examples whose pictures cannot be had, those of a resumed run's earlier parts included, and the file that lists them.
    pub unreadable: Option<(usize, PathBuf)>,
}

impl Run {
    /// Refuses what [`run()`] would refuse of the folder, before anything large is read: a run where none is gone on with,
    /// none where one is, another process, settings (or inputs, as far as they are known by now) that the run did not begin
    /// with. Nothing is made. Errors: as [`run()`].
    pub fn check(&self, kind: &str) -> Result<()> {
        self.check_checkpoint()?;
        let lock = self.out.join(files::LOCK_FILE);
        if lock.exists() && files::lock(&lock)?.is_none() {
            return Err(self.busy());
        }
        if self.resume { state::check_identity(&self.checkpoint(), &self.identity(kind)) } else { Ok(()) }
    }

    fn checkpoint(&self) -> PathBuf {
        self.out.join("checkpoint.safetensors")
    }

    fn check_checkpoint(&self) -> Result<()> {
        let reason = match (self.checkpoint().exists(), self.resume) {
            (true, false) => "this folder holds a run already; go on with --resume, or name another folder with --out",
            (false, true) => "expected the checkpoint of a run to go on with, found none; start it without --resume",
            _ => return Ok(()),
        };
        Err(Error::data(&self.out, reason))
    }

    fn lock(&self) -> Result<File> {
        std::fs::create_dir_all(&self.out).map_err(|e| seedpo_tensor::Error::io(&self.out, e))?;
        let lock = files::lock(&self.out.join(files::LOCK_FILE))?.ok_or_else(|| self.busy())?;
        // Another process may have begun and ended since it was checked.
        self.check_checkpoint()?;
        Ok(lock)
    }

    fn busy(&self) -> Error {
        let reason =
            "another process is training in this folder; wait for it, stop it, or name another folder with --out";
        Error::data(&self.out, reason)
    }

    /// What a resumed run must agree with, but for what it starts from.
    fn identity(&self, kind: &str) -> Map<String, Value> {
        let mut identity = Map::from_iter([("kind".to_owned(), Value::from(kind))]);
        if let Ok(Value::Object(settings)) = serde_json::to_value(&self.settings) {
            identity.extend(settings);
        }
        identity.extend(self.inputs.clone());
        identity
    }

    /// Whether held-out data will be looked at again after the first look of a run that goes on from `step`.
    fn looks_again(&self, step: u64) -> bool {
        self.evaluate_every > 0 && (step / self.evaluate_every + 1) * self.evaluate_every < self.settings.steps
    }
}

/// Trains, and writes the judge to `model/` of the run's folder.
///
/// On a CPU with one number of threads the result depends on settings, data and start alone, resumed or not.
/// Pictures that cannot be read are passed over, warned of and listed in `bad_rows.jsonl`; a resumed run counts those too.
/// Errors: what [`Run::check`] refuses, another start than it began with; more unreadable pictures than the run allows;
/// [`Error::NotFinite`], with the last checkpoint intact.
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
    looks: Heldout,
    heldout: Vec<(String, f64)>,
    /// Where pictures are read from a dataset.
    bad: Option<BadPairs>,
    /// Held as long as the run goes on.
    _lock: File,
}

impl<'a, T: Task> Session<'a, T> {
    fn begin(run: &'a Run, task: &'a T, start: Start) -> Result<Self> {
        run.check(task.kind())?;
        let checkpoint = run.checkpoint();
        let mut identity = run.identity(task.kind());
        identity.insert("init".to_owned(), start.fingerprint()?.into());
        let mut state = State::new(start, &run.settings)?;
        let lock = run.lock()?;
        if run.resume {
            state.load(&checkpoint, &identity)?;
        }
        let metrics = Metrics::at(run.out.join("metrics.jsonl"));
        metrics.rewind(task.kind(), state.step)?;
        let known = if run.resume { BadPairs::open } else { BadPairs::begin };
        let bad = task.source().pairs().map(|pairs| known(pairs, &run.out, run.bad_rows_limit)).transpose()?;
        let looks = Heldout::new(&run.out, run.looks_again(state.step));
        Ok(Self { run, task, state, metrics, checkpoint, identity, looks, heldout: Vec::new(), bad, _lock: lock })
    }

    fn update(&mut self, loaded: Loaded<<T::Source as Source>::Batch>) -> Result<StageReport> {
        let Loaded { batches, unreadable } = loaded;
        let step = self.state.step + 1;
        self.pass_over(unreadable)?;
        if batches.is_empty() {
            let needs = <T::Source as Source>::NEEDS;
            let reason = format!("nothing of update {step} can be used: {needs}; raise --batch, or mend the data");
            let source = self.task.source();
            return Err(Error::data(source.pairs().map_or(&self.run.out, |pairs| pairs.path()), reason));
        }
        let (mut gradients, mut value) = (Vec::new(), 0.0);
        for batch in &batches {
            let loss = self.task.loss(&self.state.model, batch, batches.len())?;
            value += loss.double_value(&[]);
            self.state.add_gradient(&loss, &mut gradients)?;
        }
        if !value.is_finite() {
            return Err(self.state.not_finite("loss", value));
        }
        let (norm, lr) = self.state.update(gradients, self.task.logit_scale_limit())?;
        let scale = self.state.model.logit_scale().double_value(&[]).exp();
        let metrics = vec![("grad_norm".to_owned(), norm), ("logit_scale".to_owned(), scale)];
        Ok(StageReport { stage: self.task.kind(), step, total: self.run.settings.steps, loss: value, lr, metrics })
    }

    fn evaluate(&mut self) -> Result<Vec<(String, f64)>> {
        if self.task.heldout() == 0 {
            return Ok(Vec::new());
        }
        let found = tch::no_grad(|| self.task.evaluate(&self.state.model, &mut self.looks))?;
        let unreadable = self.looks.take_unreadable();
        self.pass_over(unreadable)?;
        Ok(found)
    }

    /// Counts, records and warns of examples whose pictures cannot be had. Errors: there are more than the limit allows.
    fn pass_over(&mut self, unreadable: Vec<Unreadable>) -> Result<()> {
        let source = self.task.source();
        for example in unreadable {
            match (&mut self.bad, source.pairs()) {
                (Some(bad), Some(pairs)) => bad.add(example.index, example.row(pairs))?,
                _ => return Err(Error::data(Path::new(&example.why.place), example.why.detail)),
            }
        }
        Ok(())
    }

    /// What the last look at held-out data found.
    fn sentence(&self) -> String {
        let numbers = self.heldout.iter().map(|(name, value)| format!("{} {value:.4}", name.replace("heldout_", "")));
        let numbers: Vec<String> = numbers.collect();
        format!("step {}: {} held out: {}", self.state.step, self.task.heldout(), numbers.join(", "))
    }

    fn finished(&self) -> Finished {
        let bad = self.bad.as_ref().filter(|bad| bad.count() > 0);
        Finished {
            model: self.run.out.join("model"),
            step: self.state.step,
            heldout: self.heldout.clone(),
            unreadable: bad.map(|bad| (bad.count(), bad.file().to_owned())),
        }
    }
}

fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
