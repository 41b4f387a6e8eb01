//! What a roll-back leaves: the numbers of the checkpoint, in the memory that the run had before.

use super::axes::with;
use super::*;
use seedpo_align::GuardEvent;
use seedpo_tensor::{Tensor, WeightFile};

const FULL: &str = "finetuning_type = 'full'\nlearning_rate = 1e-3\n";

/// NaN from this iteration on: an iteration of two pairs is judged at once, and nothing else is four pictures.
struct NanFrom(usize, AtomicUsize);

impl Judge for NanFrom {
    fn name(&self) -> &str {
        "nan"
    }
    fn unit(&self) -> &str {
        "1"
    }
    fn judge(&self, images: &ImageBatch, prompts: &[&str]) -> seedpo_judge::Result<Vec<f64>> {
        let spoilt = images.len() == 4 && self.1.fetch_add(1, Ordering::SeqCst) >= self.0;
        if spoilt { Ok(vec![f64::NAN; 4]) } else { Colourfulness.judge(images, prompts) }
    }
}

fn settings(folder: &Path, every: u64, lines: &str) -> TrainConfig {
    let lines = format!(
        "guard = 'roll-back'\nguard_limit = 1\nvalidation_steps = 0\nnum_train_epochs = 20\nmax_train_steps = 12\n\
         checkpointing_steps = {every}\n{lines}"
    );
    with(folder, "d3po", &lines)
}

/// What is trained and its moments, by name.
fn state(trainer: &Trainer<'_>) -> BTreeMap<String, Tensor> {
    let weights = trainer.weights().tensors().into_iter().map(|(name, tensor)| (name, tensor.detach()));
    weights.chain(trainer.optimizer().state()).collect()
}

/// Where they lie; the count of updates is made anew each time it is asked for.
fn places(trainer: &Trainer<'_>) -> Vec<(String, usize)> {
    let tensors = state(trainer).into_iter().filter(|(name, _)| name != "steps");
    tensors.map(|(name, tensor)| (name, tensor.data_ptr() as usize)).collect()
}

/// The same as a checkpoint's files hold it.
fn saved(checkpoint: &Path) -> BTreeMap<String, Tensor> {
    let names =
        ["pytorch_lora_weights.safetensors", "unet/diffusion_pytorch_model.safetensors", "optimizer.safetensors"];
    let files = names.iter().map(|name| checkpoint.join(name)).filter(|path| path.exists());
    files.flat_map(|path| WeightFile::open(&path).unwrap().tensors().unwrap()).collect()
}

/// Four updates, then NaN: back to update 3 or to the beginning, and NaN again, so that the run ends there.
#[test]
fn weights_and_moments_are_put_back_where_they_lie() {
    let tiny = common::tiny_model();
    let base = tempfile::tempdir().unwrap();
    tiny.save(base.path(), None).unwrap();
    let half = DiffusionModel::load(base.path(), &LoadOptions::new(Device::Cpu, Kind::BFloat16)).unwrap();
    for (model, lines) in [
        (&tiny, ""),
        (&tiny, "optimizer = 'adafactor'\nreference = 'ema'"),
        (&tiny, "finetuning_type = 'full'\nlearning_rate = 1e-3\nsafeguard = true\nreference = 'random-history'"),
        (&tiny, "finetuning_type = 'full'\nlearning_rate = 1e-3\noptimizer = 'adafactor'\nema_decay = 0.9"),
        (&half, "finetuning_type = 'full'\nlearning_rate = 1e-3\nreference = 'ema'"),
    ] {
        for (every, to) in [(3, 3), (50, 0)] {
            let folder = tempfile::tempdir().unwrap();
            let judge = NanFrom(2, AtomicUsize::new(0));
            let mut trainer = start(model, &settings(folder.path(), every, lines), &judge);
            let (places_before, beginning) = (places(&trainer), state(&trainer));
            let beginning: BTreeMap<_, _> = beginning.into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
            let message = trainer.run(&mut Silent, &STOP).unwrap_err().to_string();
            assert!(message.contains("NaN"), "{lines}: {message}");
            let run = RunDir::open(&folder.path().join("run")).unwrap();
            let rolled = |record| if let Record::Guard(event) = record { Some(event) } else { None };
            let events: Vec<GuardEvent> = run.records().unwrap().into_iter().filter_map(rolled).collect();
            assert_eq!((events[0].step, events[0].rolled_back_to), (5, Some(to)), "{lines}");
            assert_eq!((trainer.position().step, events.len()), (to, 2), "{lines}");
            let expected = if to == 0 { beginning } else { saved(&run.path().join("checkpoint-3")) };
            for (name, tensor) in state(&trainer) {
                assert_eq!(tensor, expected[&name], "{name}, {lines}");
            }
            assert_eq!(places(&trainer), places_before, "{lines}");
            assert_eq!(Checkpoint::list(run.path()).unwrap(), if to == 0 { vec![] } else { vec![3] });
        }
    }
}

/// The policy that was to be taken back is not saved because it could not be.
#[test]
fn a_roll_back_that_fails_saves_nothing() {
    /// Damages the checkpoint of an update: its file, or the moments in it.
    struct Damage(u64, bool);
    impl Observer for Damage {
        fn on_checkpoint(&mut self, step: u64, folder: &Path) -> Result<(), ObserverError> {
            let path = folder.join("optimizer.safetensors");
            match step == self.0 {
                true if self.1 => std::fs::write(path, b"damaged")?,
                true => seedpo_tensor::write_weights(&path, &BTreeMap::new(), &BTreeMap::new())?,
                false => {}
            }
            Ok(())
        }
    }
    let model = common::tiny_model();
    for (lines, every, file) in [("", 3, true), (FULL, 3, false), ("", 2, false), (FULL, 2, true)] {
        let folder = tempfile::tempdir().unwrap();
        let judge = NanFrom(2, AtomicUsize::new(0));
        let mut trainer = start(&model, &settings(folder.path(), every, lines), &judge);
        let run = RunDir::open(&folder.path().join("run")).unwrap();
        let (newest, saved) = if every == 3 { (3, vec![3]) } else { (4, vec![2, 4]) };
        let damaged = run.path().join(Checkpoint::folder_name(newest));
        let message = trainer.run(&mut Damage(newest, file), &STOP).unwrap_err().to_string();
        // The tensors are missed in the file, not in its folder.
        assert!(message.contains(&format!("checkpoint-{newest}/optimizer.safetensors")), "{message}");
        assert_eq!(Checkpoint::list(run.path()).unwrap(), saved);
        // What cannot be gone back to is not what the run could go on from.
        let resume = format!("--resume {}", run.path().join("checkpoint-2").display());
        assert!(message.contains(&format!("could not be taken back to {}", damaged.display())), "{message}");
        assert_eq!(message.contains(&resume), every == 2, "{message}");
        assert_eq!(message.contains("there is no other"), every == 3, "{message}");
    }
}
