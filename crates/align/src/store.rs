//! Rollouts kept on disk: sampled once, trained on as often as wanted (docs/data.md, "Offline replay").
//!
//! A store is a folder: `store.json`, which says what was sampled and how, and one safetensors file per iteration, each
//! written whole before the index names it. Training reads one file at a time.

mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use seedpo_rollout::{Cost, StepPair, Trajectory, TrajectoryPair};
use seedpo_tensor::{Device, WeightFile, files, write_weights};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::objective::Preference;

pub use settings::{StoreOrigin, StoreSettings};

const INDEX: &str = "store.json";
/// Raised when a store is written that older versions would misread.
const VERSION: u32 = 1;

/// A file of the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shard {
    /// Its name in the folder.
    pub file: String,
    /// Pairs with a winner.
    pub pairs: u64,
    /// Pairs without.
    pub tied: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Index {
    version: u32,
    settings: StoreSettings,
    origin: StoreOrigin,
    /// How many files there will be.
    planned: u64,
    prompts: Vec<String>,
    shards: Vec<Shard>,
}

/// A folder of stored rollouts.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    index: Index,
}

/// The pairs of one iteration, with the prompt of each row as an index into [`Store::prompts`].
#[derive(Debug)]
pub enum Stored {
    /// SPO's; their `prompt` counts rows.
    Steps(Vec<StepPair>),
    /// D3PO's.
    Trajectories(TrajectoryPair, Vec<Preference>),
}

impl Store {
    /// Whether `path` is a store's folder.
    pub fn is_one(path: &Path) -> bool {
        path.join(INDEX).is_file()
    }

    /// Opens a store. Errors: [`Error::Run`] for a folder that is none, or of another version.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(INDEX);
        let refuse = |reason: String| Error::Run { path: path.clone(), reason };
        if !path.is_file() {
            return Err(refuse("expected a store that `seedpo rollout` wrote, found no such file".into()));
        }
        let index: Index = serde_json::from_str(&files::read_text(&path)?)
            .map_err(|e| refuse(format!("expected a store of version {VERSION}: {e}")))?;
        if index.version != VERSION {
            return Err(refuse(format!("expected a store of version {VERSION}, found {}", index.version)));
        }
        Ok(Self { folder: folder.into(), index })
    }

    /// A new store of `planned` files, or the one in `folder` to go on with.
    ///
    /// Errors: [`Error::Run`] where what is there was drawn with other settings, naming them.
    pub fn create(
        folder: &Path,
        settings: StoreSettings,
        origin: StoreOrigin,
        prompts: &[String],
        planned: u64,
    ) -> Result<Self> {
        let index =
            Index { version: VERSION, settings, origin, planned, prompts: prompts.to_vec(), shards: Vec::new() };
        if Self::is_one(folder) {
            let known = Self::open(folder)?;
            let begun = &known.index;
            let mut differing = begun.settings.differences(&index.settings);
            if (&begun.origin, &begun.prompts, begun.planned) != (&index.origin, &index.prompts, index.planned) {
                differing
                    .push("model, judge, seed, candidates, prompts, their number per iteration, or the length".into());
            }
            if differing.is_empty() {
                // Its numbers as they were before they were text.
                let index = Index { shards: known.index.shards, ..index };
                return Ok(Self { folder: folder.into(), index });
            }
            let reason = format!("begun with other settings; name another folder\n  {}", differing.join("\n  "));
            return Err(Error::Run { path: folder.into(), reason });
        }
        if folder.exists() && std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
            let reason = "expected a new folder or a store to go on with, found other files".into();
            return Err(Error::Run { path: folder.into(), reason });
        }
        std::fs::create_dir_all(folder).map_err(|e| seedpo_tensor::Error::io(folder, e))?;
        let store = Self { folder: folder.into(), index };
        store.write_index()?;
        Ok(store)
    }

    /// Files written so far: the iteration to go on with.
    pub fn len(&self) -> usize {
        self.index.shards.len()
    }

    /// How many files there are to be, where the rollout that writes them has not come to its end.
    pub fn unfinished(&self) -> Option<u64> {
        (self.len() as u64 != self.index.planned).then_some(self.index.planned)
    }

    /// Whether nothing is stored yet.
    pub fn is_empty(&self) -> bool {
        self.index.shards.is_empty()
    }

    /// The files.
    pub fn shards(&self) -> &[Shard] {
        &self.index.shards
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// The prompts that rows refer to.
    pub fn prompts(&self) -> &[String] {
        &self.index.prompts
    }

    /// Prompts per file; the last may have fewer.
    pub fn prompts_per_file(&self) -> u64 {
        self.index.origin.prompts_per_iteration
    }

    /// Refuses to train with other settings than the samples were drawn with, or on nothing.
    ///
    /// Errors: [`Error::Run`] naming each.
    pub fn check(&self, run: &StoreSettings) -> Result<()> {
        let differing = self.index.settings.differences(run);
        let refuse = |reason: String| Err(Error::Run { path: self.folder.clone(), reason });
        if !differing.is_empty() {
            return refuse(format!("drawn with other settings than this run's:\n  {}", differing.join("\n  ")));
        }
        if self.index.shards.iter().all(|shard| shard.pairs == 0) {
            return refuse("expected pairs with a winner, found none".into());
        }
        Ok(())
    }

    /// Adds the pairs of an iteration; `prompts` has one index into [`Store::prompts`] per row.
    pub fn add(&mut self, stored: &Stored, prompts: &[usize], tied: u64) -> Result<()> {
        let mut tensors = match stored {
            Stored::Steps(pairs) => step_tensors(pairs)?,
            Stored::Trajectories(pair, preferences) => trajectory_tensors(pair, preferences)?,
        };
        tensors.insert("prompts".into(), integers(prompts.iter().map(|&p| p as i64)));
        let file = format!("rollout-{:06}.safetensors", self.len());
        write_weights(&self.folder.join(&file), &tensors, &BTreeMap::new())?;
        let pairs = match stored {
            Stored::Steps(pairs) => pairs.len(),
            Stored::Trajectories(_, preferences) => preferences.iter().filter(|p| p.decided()).count(),
        };
        self.index.shards.push(Shard { file, pairs: pairs as u64, tied });
        self.write_index()
    }

    /// The pairs of file `shard` (below [`Store::len`]) on `device`, and the prompt of each row.
    ///
    /// Errors: a missing or damaged file, tensors of other shapes than the index says.
    pub fn read(&self, shard: usize, device: Device) -> Result<(Stored, Vec<usize>)> {
        let file = WeightFile::open(&self.folder.join(&self.index.shards[shard].file))?;
        let reader = Reader { file: &file, device };
        let prompts: Vec<usize> = reader.integers("prompts")?.into_iter().map(|p| p as usize).collect();
        if let Some(bad) = prompts.iter().find(|&&p| p >= self.index.prompts.len()) {
            return Err(reader.refuse("prompts", format!("below {}", self.index.prompts.len()), bad.to_string()));
        }
        let settings = &self.index.settings;
        let stored = if settings.pairs == "steps" {
            Stored::Steps(reader.steps(&settings.latent_shape, prompts.len())?)
        } else {
            let (pair, preferences) = reader.trajectories(settings, prompts.len())?;
            Stored::Trajectories(pair, preferences)
        };
        Ok((stored, prompts))
    }

    fn write_index(&self) -> Result<()> {
        let path = self.folder.join(INDEX);
        let text = serde_json::to_string_pretty(&self.index)
            .map_err(|e| Error::Run { path: path.clone(), reason: e.to_string() })?;
        Ok(files::write_atomic(&path, text.as_bytes())?)
    }
}

fn integers(values: impl Iterator<Item = i64>) -> Tensor {
    Tensor::from_slice(&values.collect::<Vec<_>>())
}

fn step_tensors(pairs: &[StepPair]) -> Result<BTreeMap<String, Tensor>> {
    let timesteps = integers(pairs.iter().map(|pair| pair.timestep));
    let rows = integers(pairs.iter().map(|pair| pair.prompt as i64));
    let scores: Vec<f64> = pairs.iter().flat_map(|pair| pair.scores).collect();
    let scores = Tensor::from_slice(&scores).reshape([-1, 2]);
    let mut tensors = BTreeMap::from([("timesteps", timesteps), ("rows", rows), ("scores", scores)].map(named));
    if !pairs.is_empty() {
        let stack = |of: &dyn Fn(&StepPair) -> &Tensor| Tensor::f_stack(&pairs.iter().map(of).collect::<Vec<_>>(), 0);
        tensors.insert("latents".into(), stack(&|pair| &pair.latents)?);
        tensors.insert("next_latents_w".into(), stack(&|pair| &pair.next_latents_w)?);
        tensors.insert("next_latents_l".into(), stack(&|pair| &pair.next_latents_l)?);
        tensors.insert("pred_x0_w".into(), stack(&|pair| &pair.pred_x0[0])?);
        tensors.insert("pred_x0_l".into(), stack(&|pair| &pair.pred_x0[1])?);
    }
    Ok(tensors)
}

fn trajectory_tensors(pair: &TrajectoryPair, preferences: &[Preference]) -> Result<BTreeMap<String, Tensor>> {
    let sides = pair.sides.each_ref().map(|side| Tensor::f_stack(&side.latents, 0));
    let [first, second] = sides;
    let code = |preference: &Preference| match preference {
        Preference::First => 0,
        Preference::Second => 1,
        Preference::Tie => 2,
    };
    let preferences = integers(preferences.iter().map(code));
    Ok(BTreeMap::from([("first", first?), ("second", second?), ("preferences", preferences)].map(named)))
}

fn named((name, tensor): (&str, Tensor)) -> (String, Tensor) {
    (name.to_owned(), tensor)
}

/// Tensors of a file, checked.
struct Reader<'f> {
    file: &'f WeightFile,
    device: Device,
}

impl Reader<'_> {
    fn refuse(&self, name: &str, expected: String, found: String) -> Error {
        Error::Input { what: format!("{}, tensor `{name}`", self.file.path().display()), expected, found }
    }

    fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.file.tensor(name)?;
        if tensor.size() != shape {
            return Err(self.refuse(name, format!("{shape:?}"), format!("{:?}", tensor.size())));
        }
        Ok(tensor.to_kind(Kind::Float).to_device(self.device))
    }

    fn integers(&self, name: &str) -> Result<Vec<i64>> {
        let tensor = self.file.tensor(name)?;
        match (tensor.kind(), tensor.dim()) {
            (Kind::Int64, 1) => Ok(Vec::try_from(&tensor)?),
            found => Err(self.refuse(name, "i64 [N]".into(), format!("{found:?}"))),
        }
    }

    fn steps(&self, latent_shape: &[i64], rows: usize) -> Result<Vec<StepPair>> {
        let (timesteps, of_row) = (self.integers("timesteps")?, self.integers("rows")?);
        if timesteps.is_empty() {
            return Ok(Vec::new());
        }
        if of_row.len() != timesteps.len() || of_row.iter().any(|&row| row < 0 || row >= rows as i64) {
            return Err(self.refuse("rows", format!("{} rows below {rows}", timesteps.len()), format!("{of_row:?}")));
        }
        let count = timesteps.len() as i64;
        let shape: Vec<i64> = std::iter::once(count).chain(latent_shape.iter().copied()).collect();
        let latents = self.tensor("latents", &shape)?;
        let next = [self.tensor("next_latents_w", &shape)?, self.tensor("next_latents_l", &shape)?];
        let pred_x0 = [self.tensor("pred_x0_w", &shape)?, self.tensor("pred_x0_l", &shape)?];
        let scores = Vec::<f64>::try_from(self.file.tensor("scores")?.to_kind(Kind::Double).reshape([-1]))?;
        if scores.len() != 2 * timesteps.len() {
            return Err(self.refuse("scores", format!("[{count}, 2]"), format!("{} values", scores.len())));
        }
        let pair = |i: usize| {
            let at = |tensor: &Tensor| tensor.get(i as i64);
            StepPair {
                latents: at(&latents),
                next_latents_w: at(&next[0]),
                next_latents_l: at(&next[1]),
                pred_x0: pred_x0.each_ref().map(at),
                timestep: timesteps[i],
                prompt: of_row[i] as usize,
                scores: [scores[2 * i], scores[2 * i + 1]],
            }
        };
        Ok((0..timesteps.len()).map(pair).collect())
    }

    fn trajectories(&self, settings: &StoreSettings, rows: usize) -> Result<(TrajectoryPair, Vec<Preference>)> {
        let stages = settings.timesteps.len() as i64 + 1;
        let shape: Vec<i64> = [stages, rows as i64].into_iter().chain(settings.latent_shape.iter().copied()).collect();
        let side = |name: &str| -> Result<Trajectory> {
            let latents = self.tensor(name, &shape)?.unbind(0);
            Ok(Trajectory { latents, timesteps: settings.timesteps.clone(), log_probs: None, cost: Cost::default() })
        };
        let codes = self.integers("preferences")?;
        if codes.len() != rows {
            return Err(self.refuse("preferences", format!("[{rows}]"), format!("[{}]", codes.len())));
        }
        let preference = |code: &i64| match code {
            0 => Preference::First,
            1 => Preference::Second,
            _ => Preference::Tie,
        };
        let pair = TrajectoryPair {
            sides: [side("first")?, side("second")?],
            prompts: (0..rows).collect(),
            cost: Cost::default(),
        };
        Ok((pair, codes.iter().map(preference).collect()))
    }
}
