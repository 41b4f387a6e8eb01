//! Whole runs on six emoji: they resume bit for bit, their folders load as judges, and bad input is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use seedpo_data::{Options, Pairs};
use seedpo_judge::{JudgeOptions, load, load_clip};
use seedpo_judge_train::{
    Captions, Contrastive, Crop, EmojiCaptions, FileCaptions, Finished, Noising, Preference, Preset, Run, Settings,
    Sizes, Start, Task, run, write_pairs,
};
use seedpo_model::{ClipTokenizer, DiffusionModel, LoadOptions};
use seedpo_pretrain::{Observer, Silent, StageReport};
use seedpo_tensor::{Device, Kind, Tensor, WeightFile, files, write_weights};

const SIZES: Sizes = Sizes { image_size: 32, patch_size: 16, vision: [16, 2, 2], text: [16, 1, 2], projection: 16 };

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn emoji() -> EmojiCaptions {
    EmojiCaptions::read(&root().join("crates/pretrain/tests/fixtures/emoji")).unwrap()
}

fn settings(kind: &str) -> Settings {
    seedpo_tensor::tch::set_num_threads(1);
    let preset = Preset::find(kind, None).unwrap().settings();
    Settings { steps: 5, batch: 3, accumulation: 2, lr: 1e-3, warmup: 1, seed: 3, heldout_share: 0.5, ..preset }
}

fn fresh() -> Start {
    Start::fresh(&SIZES, tokenizer_of_emoji(), 1, Device::Cpu).unwrap()
}

fn tokenizer_of_emoji() -> ClipTokenizer {
    ClipTokenizer::from_folder(&root().join("assets/emoji-sd")).unwrap()
}

fn run_in(out: PathBuf, settings: Settings) -> Run {
    let inputs = serde_json::Map::from_iter([("data".to_owned(), "emoji".into())]);
    Run {
        out,
        settings,
        inputs,
        resume: false,
        checkpoint_every: 2,
        evaluate_every: 2,
        bad_rows_limit: 0.0,
        storage: Kind::Float,
    }
}

/// Asks to stop after an update.
struct StopAt(u64, bool);

impl Observer for StopAt {
    fn on_step(&mut self, report: &StageReport) {
        assert!(report.loss.is_finite() && report.metrics.iter().all(|(_, value)| value.is_finite()));
        self.1 = report.step == self.0;
    }

    fn stop(&self) -> bool {
        self.1
    }
}

/// A run as a whole and one stopped twice end with the same bytes; the trained folder.
fn resumes(kind: &str, task: &impl Task, start: &dyn Fn() -> Start, scratch: &Path) -> Finished {
    let whole = run_in(scratch.join("whole"), settings(kind));
    let finished = run(&whole, task, start(), &mut Silent).unwrap();
    assert_eq!(finished.step, 5);
    let mut broken = run_in(scratch.join("broken"), settings(kind));
    for stop in [1, 4] {
        assert_eq!(run(&broken, task, start(), &mut StopAt(stop, false)).unwrap().step, stop);
        broken.resume = true;
    }
    let resumed = run(&broken, task, start(), &mut Silent).unwrap();
    let weights = |finished: &Finished| std::fs::read(finished.model.join("model.safetensors")).unwrap();
    assert!(weights(&finished) == weights(&resumed), "whole and resumed run differ");
    assert_eq!(finished.heldout, resumed.heldout);
    let lines = std::fs::read_to_string(scratch.join("broken/metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 5, "one line per update, none twice");
    finished
}

fn pairs(scratch: &Path) -> Arc<Pairs> {
    let folder = scratch.join("pairs");
    write_pairs(&folder, &emoji(), 1).unwrap();
    Arc::new(Pairs::open(&folder, &Options { ties: true, ..Options::default() }).unwrap())
}

fn picture() -> Tensor {
    Tensor::arange(40 * 50 * 3, (Kind::Int64, Device::Cpu)).remainder(251).to_kind(Kind::Uint8).view([1, 40, 50, 3])
}

#[test]
fn a_clip_and_a_preference_model_from_it() {
    let scratch = tempfile::tempdir().unwrap();
    let start = fresh();
    let tokenizer = Arc::clone(&start.tokenizer);
    let crop = Crop { least_area: 0.5 };
    let task = Contrastive::new(Box::new(emoji()), tokenizer, 32, crop, &settings("clip")).unwrap();
    let clip = resumes("clip", &task, &fresh, &scratch.path().join("clip"));
    assert_eq!(clip.heldout.len(), 3);

    let from_clip = || Start::load(&clip.model, Device::Cpu).unwrap().plain().unwrap();
    let start = from_clip();
    let pairs = pairs(scratch.path());
    let task = Preference::new(Arc::clone(&pairs), Arc::clone(&start.tokenizer), 32, None, &settings("preference"));
    let task = task.unwrap();
    let finished = resumes("preference", &task, &from_clip, &scratch.path().join("preference"));
    let accuracy = finished.heldout[0].1;
    assert!((0.0..=1.0).contains(&accuracy) && finished.heldout[0].0 == "heldout_pair_accuracy");
    let judge = load("pickscore", std::slice::from_ref(&finished.model), &JudgeOptions::default()).unwrap();
    let score = judge.score(&picture(), &["red apple"]).unwrap();
    // The run's folder itself does as well: its checkpoint is not taken for a judge.
    let folder = finished.model.parent().unwrap().to_path_buf();
    let again = load("pickscore", &[folder], &JudgeOptions::default()).unwrap();
    assert_eq!(again.score(&picture(), &["red apple"]).unwrap(), score);
}

/// Within the limit they are passed over and listed, above it the run ends; interrupted or not.
#[test]
fn pictures_that_are_gone_are_counted_in_all_parts_of_a_run() {
    let scratch = tempfile::tempdir().unwrap();
    let pairs = pairs(scratch.path());
    let rows = pairs.report().rows as f64;
    for index in (0..pairs.len()).step_by(4) {
        // Several pairs have it.
        let _ = std::fs::remove_file(pairs.file(pairs.pair(index).winner).unwrap());
    }
    let settings = settings("preference");
    let task = Preference::new(Arc::clone(&pairs), Arc::new(tokenizer_of_emoji()), 32, None, &settings).unwrap();
    let limited =
        |out: &str, limit| Run { bad_rows_limit: limit, ..run_in(scratch.path().join(out), settings.clone()) };
    let lines = |list: &Path| {
        let text = std::fs::read_to_string(list).unwrap();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let parts = |run_: &mut Run| {
        run(run_, &task, fresh(), &mut StopAt(3, false)).unwrap();
        run_.resume = true;
        run(run_, &task, fresh(), &mut Silent)
    };
    let (count, list) = run(&limited("whole", 1.0), &task, fresh(), &mut Silent).unwrap().unreadable.unwrap();
    assert_eq!(list, scratch.path().join("whole/bad_rows.jsonl"));
    assert!(count > 4 && lines(&list).len() == count && lines(&list)[0].contains("pairs.jsonl line"), "{list:?}");
    let (again, resumed) = parts(&mut limited("parts", 1.0)).unwrap().unreadable.unwrap();
    assert_eq!((again, lines(&resumed)), (count, lines(&list)));

    // One more than that is allowed.
    let limit = (count as f64 - 0.5) / rows;
    for error in [run(&limited("strict", limit), &task, fresh(), &mut Silent), parts(&mut limited("stricter", limit))] {
        let message = error.unwrap_err().to_string();
        assert!(message.contains("bad_rows_limit") && message.contains(&format!("{count} of {rows}")), "{message}");
    }
    // A list that another run left is not this one's.
    let old = limited("old", 1.0);
    std::fs::create_dir(&old.out).unwrap();
    std::fs::copy(&list, old.out.join("bad_rows.jsonl")).unwrap();
    let one = Run { settings: Settings { steps: 1, ..settings.clone() }, ..old };
    let (few, list) = run(&one, &task, fresh(), &mut Silent).unwrap().unreadable.unwrap();
    assert!(few < count && lines(&list).len() == few, "{few} {count}");

    for index in 0..pairs.len() {
        let _ = std::fs::remove_file(pairs.file(pairs.pair(index).winner).unwrap());
    }
    let message = run(&limited("none", 1.0), &task, fresh(), &mut Silent).unwrap_err().to_string();
    assert!(message.contains("nothing of update 1 can be used") && message.contains("pairs: "), "{message}");
}

#[test]
fn pictures_that_cannot_be_compared_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("pictures");
    std::fs::create_dir(&folder).unwrap();
    emoji().picture(0).unwrap().save(folder.join("0.png")).unwrap();
    (1..4).for_each(|index| std::fs::write(folder.join(format!("{index}.png")), b"no picture").unwrap());
    let line = |index: usize| format!("{{\"file_name\": \"{index}.png\", \"text\": \"x\"}}\n");
    std::fs::write(folder.join("metadata.jsonl"), (0..4).map(line).collect::<String>()).unwrap();
    let captions = Box::new(FileCaptions::open(&folder, 1.0).unwrap());
    let settings = Settings { batch: 4, accumulation: 1, heldout_share: 0.0, ..settings("clip") };
    let crop = Crop { least_area: 1.0 };
    let task = Contrastive::new(captions, Arc::new(tokenizer_of_emoji()), 32, crop, &settings).unwrap();
    let one = Run { bad_rows_limit: 1.0, ..run_in(scratch.path().join("run"), settings) };
    let message = run(&one, &task, fresh(), &mut Silent).unwrap_err().to_string();
    assert!(message.contains("pictures: nothing of update 1") && message.contains("no batch has two"), "{message}");
}

#[test]
fn a_step_aware_model() {
    let scratch = tempfile::tempdir().unwrap();
    let model = DiffusionModel::load(&root().join("assets/emoji-sd"), &LoadOptions::default()).unwrap();
    let noising = Noising::new(model, 5.0, 64).unwrap();
    let fresh = || fresh().step_aware(3).unwrap();
    let start = fresh();
    let tokenizer = Arc::clone(&start.tokenizer);
    let task = Preference::new(pairs(scratch.path()), tokenizer, 32, Some(noising), &settings("step-aware")).unwrap();
    let finished = resumes("step-aware", &task, &fresh, &scratch.path().join("run"));
    let names: Vec<&str> = finished.heldout.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 6);
    assert_eq!((names[1], names[5]), ("heldout_pair_accuracy_t251", "heldout_pair_accuracy"));
    let weights = WeightFile::open(&finished.model.join("model.safetensors")).unwrap();
    assert!(weights.names().any(|name| name.starts_with("t_embedder")));
    let judge = load("spm", std::slice::from_ref(&finished.model), &JudgeOptions::default()).unwrap();
    let image = Tensor::zeros([1, 3, 64, 64], (Kind::Float, Device::Cpu));
    let at = |t| judge.score_step(&image, t, &["red apple"]).unwrap()[0];
    assert!(at(0).is_finite() && at(0) != at(951), "the timestep matters after training");
    let error = Start::load(&finished.model, Device::Cpu).unwrap().plain().unwrap_err().to_string();
    assert!(error.contains("step-aware"), "{error}");
    assert!(Start::load(&finished.model, Device::Cpu).unwrap().step_aware(1).is_ok());
}

#[test]
fn a_fresh_conditioning_changes_nothing() {
    let (plain, timed) = (fresh(), fresh().step_aware(5).unwrap());
    assert!(timed.parameters.len() > plain.parameters.len());
    assert!(plain.parameters.iter().all(|(name, tensor)| timed.parameters[name].equal(tensor)));
}

/// A gradient that is no number is not applied, and nothing is written from it.
#[test]
fn a_gradient_that_is_no_number_ends_the_run() {
    let scratch = tempfile::tempdir().unwrap();
    let start = fresh();
    let crop = Crop { least_area: 1.0 };
    let task = Contrastive::new(Box::new(emoji()), Arc::clone(&start.tokenizer), 32, crop, &settings("clip")).unwrap();
    // Features of length 0: the loss is a number, its gradient is none.
    let parameters = start.parameters.iter().map(|(name, tensor)| {
        (name.clone(), if name.contains("visual_projection") { tensor.zeros_like() } else { tensor.shallow_clone() })
    });
    let spoilt = Start { parameters: parameters.collect(), ..fresh() };
    let one = run_in(scratch.path().join("one"), settings("clip"));
    let error = run(&one, &task, spoilt, &mut Silent).unwrap_err().to_string();
    assert!(error.contains("gradient's norm of update 1 is NaN") && error.contains("lower --lr"), "{error}");
    assert!(error.contains("nothing was saved") && !error.contains("--out"), "{error}");
    assert!(!one.out.join("checkpoint.safetensors").exists());
}

#[test]
fn what_does_not_fit_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let start = fresh();
    let tokenizer = || Arc::clone(&start.tokenizer);
    let crop = Crop { least_area: 1.0 };
    let task = Contrastive::new(Box::new(emoji()), tokenizer(), 32, crop, &settings("clip")).unwrap();
    let message = |run_: &Run| run(run_, &task, fresh(), &mut Silent).unwrap_err().to_string();
    let mut one = run_in(scratch.path().join("one"), settings("clip"));
    one.resume = true;
    assert!(message(&one).contains("found none"));
    assert!(!one.out.exists());
    one.resume = false;
    run(&one, &task, fresh(), &mut Silent).unwrap();
    assert!(message(&one).contains("holds a run already"));
    one.resume = true;
    one.settings.lr = 2e-3;
    let other = message(&one);
    assert!(other.contains("`lr`") && other.contains("0.001") && other.contains("0.002"), "{other}");
    one.settings = settings("clip");
    one.inputs.insert("data".into(), "others".into());
    assert!(message(&one).contains("`data`"));
    one.inputs = run_in(one.out.clone(), settings("clip")).inputs;
    let other = Start::fresh(&SIZES, tokenizer_of_emoji(), 2, Device::Cpu).unwrap();
    let other = run(&one, &task, other, &mut Silent).unwrap_err().to_string();
    assert!(other.contains("`init`"), "other weights to start from: {other}");
    // One that did not record a setting.
    let checkpoint = one.out.join("checkpoint.safetensors");
    let file = WeightFile::open(&checkpoint).unwrap();
    let metadata = file.metadata().into_iter().map(|(key, text)| (key, text.replace("\"heldout-limit\":0,", "")));
    write_weights(&checkpoint, &file.tensors().unwrap(), &metadata.collect()).unwrap();
    let older = message(&one);
    assert!(older.contains("`heldout-limit`") && older.contains("another version"), "{older}");
    let _held = files::lock(&one.out.join(files::LOCK_FILE)).unwrap().unwrap();
    assert!(message(&one).contains("another process"));

    let wrong = |change: &dyn Fn(&mut Settings)| {
        let mut settings = settings("clip");
        change(&mut settings);
        settings.validate().unwrap_err().to_string()
    };
    assert!(wrong(&|s| s.batch = 0).contains("`batch`: expected 1 or more"));
    assert!(wrong(&|s| s.lr = -1.0).contains("`lr`"));
    assert!(wrong(&|s| s.heldout_share = 1.0).contains("`heldout-share`"));
    assert!(wrong(&|s| s.schedule = "cosin".into()).contains("cosine"));
    let single = Settings { batch: 1, ..settings("clip") };
    assert!(Contrastive::new(Box::new(emoji()), tokenizer(), 32, crop, &single).is_err());
    let alone = Settings { heldout_limit: 1, ..settings("clip") };
    let error = Contrastive::new(Box::new(emoji()), tokenizer(), 32, crop, &alone).err().unwrap().to_string();
    assert!(error.contains("`heldout-limit`: expected 2 or more"), "{error}");
    let folder = scratch.path().join("empty");
    std::fs::create_dir(&folder).unwrap();
    assert!(load_clip(&folder, &JudgeOptions::default()).unwrap_err().to_string().contains("no weight file"));
}
