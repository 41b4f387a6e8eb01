//! Offline replay: stored rollouts, and training on them.

use super::*;
use seedpo_align::store::Store;

/// All prompts in one iteration, or one in each.
fn sampled(folder: &Path, method: &str, prompts_per_iteration: u64) -> TrainConfig {
    let config = config(folder, method);
    TrainConfig { prompts_per_iteration, num_train_epochs: 1, max_train_steps: 0, validation_steps: 0, ..config }
}

/// A trainer on the store in `folder`.
fn replaying<'a>(model: &'a DiffusionModel, config: &TrainConfig, store: &Path) -> Result<Trainer<'a>, Error> {
    let config = TrainConfig { prompts: Vec::new(), pairs_file: store.display().to_string(), ..config.clone() };
    let run = RunDir::create(&config, &BTreeMap::new(), &BTreeMap::new()).unwrap();
    reopened(model, &config, store, run, None)
}

fn reopened<'a>(
    model: &'a DiffusionModel,
    config: &TrainConfig,
    store: &Path,
    run: RunDir,
    checkpoint: Option<Checkpoint>,
) -> Result<Trainer<'a>, Error> {
    let store = Arc::new(Store::open(store)?);
    let (prompts, config) = (store.prompts().to_vec(), config.clone());
    let judge = &Colourfulness;
    let parts =
        Parts { config, prompts, image_pairs: None, store: Some(store), model, judge, heldout: Vec::new(), run };
    Trainer::new(parts, checkpoint)
}

/// Within the first iteration offline is online: the same pairs in the same order, so the same adapter, bit for bit.
#[test]
fn the_first_iteration_on_a_store_is_the_first_iteration_online() {
    let model = common::tiny_model();
    for method in ["spo", "d3po"] {
        let folder = tempfile::tempdir().unwrap();
        let config = sampled(folder.path(), method, 3);
        start(&model, &config, &Colourfulness).run(&mut Silent, &STOP).unwrap();
        let online = adapter(&folder.path().join("run"));
        let store = folder.path().join("store");
        start(&model, &config, &Colourfulness).roll_out(&store, &mut Silent, &STOP).unwrap();
        assert_eq!(Store::open(&store).unwrap().len(), 1);
        let config = TrainConfig { name: "offline".into(), ..config };
        replaying(&model, &config, &store).unwrap().run(&mut Silent, &STOP).unwrap();
        assert!(adapter(&folder.path().join("offline")) == online, "{method}");
    }
}

/// Rolling out may stop after any file; training on the store may stop after any update.
#[test]
fn storing_and_replaying_go_on_where_they_stopped() {
    struct StopAt<'a>(u64, &'a AtomicBool);
    impl Observer for StopAt<'_> {
        fn on_phase(&mut self, phase: Phase, _: usize, _: usize) {
            self.0 -= u64::from(phase == Phase::Rollout);
            self.1.store(self.0 == 0, Ordering::SeqCst);
        }
        fn on_update(&mut self, _: &UpdateMetrics) -> Result<(), ObserverError> {
            self.0 -= 1;
            self.1.store(self.0 == 0, Ordering::SeqCst);
            Ok(())
        }
    }
    let (model, folder) = (common::tiny_model(), tempfile::tempdir().unwrap());
    let config = sampled(folder.path(), "d3po", 1);
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    start(&model, &config, &Colourfulness).roll_out(&whole, &mut Silent, &STOP).unwrap();
    let stop = AtomicBool::new(false);
    // Four steps a file: in the middle of the second.
    let finished = start(&model, &config, &Colourfulness).roll_out(&parts, &mut StopAt(6, &stop), &stop).unwrap();
    assert_eq!((finished, Store::open(&parts).unwrap().len()), (Finished::Interrupted, 1));
    start(&model, &config, &Colourfulness).roll_out(&parts, &mut Silent, &STOP).unwrap();
    for name in ["store.json", "rollout-000000.safetensors", "rollout-000002.safetensors"] {
        let of = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(of(&whole) == of(&parts), "{name}");
    }
    let config = TrainConfig { num_train_epochs: 2, ..config };
    let run = |name: &str| folder.path().join(name);
    replaying(&model, &TrainConfig { name: "all".into(), ..config.clone() }, &whole)
        .unwrap()
        .run(&mut Silent, &STOP)
        .unwrap();
    let config = TrainConfig { name: "halves".into(), ..config };
    let stop = AtomicBool::new(false);
    let mut first = replaying(&model, &config, &whole).unwrap();
    assert_eq!(first.run(&mut StopAt(4, &stop), &stop).unwrap(), Finished::Interrupted);
    let (folder, checkpoint) = RunDir::resolve(run("halves").to_str().unwrap(), folder.path(), "").unwrap();
    let config = TrainConfig { prompts: Vec::new(), pairs_file: whole.display().to_string(), ..config };
    reopened(&model, &config, &whole, folder, checkpoint).unwrap().run(&mut Silent, &STOP).unwrap();
    assert!(adapter(&run("halves")) == adapter(&run("all")));
}

#[test]
fn a_store_that_does_not_fit_is_refused() {
    let (model, folder) = (common::tiny_model(), tempfile::tempdir().unwrap());
    let config = sampled(folder.path(), "spo", 3);
    let store = folder.path().join("store");
    start(&model, &config, &Colourfulness).roll_out(&store, &mut Silent, &STOP).unwrap();
    let refused = |config: TrainConfig| replaying(&model, &config, &store).map(|_| ()).unwrap_err().to_string();
    let message = refused(TrainConfig { steps: 5, guidance_scale: 3.0, ..config.clone() });
    assert!(message.contains("steps: the store has 4, the run 5"), "{message}");
    assert!(message.contains("guidance_scale: the store has 2, the run 3"), "{message}");
    let d3po = TrainConfig { method: "d3po".into(), beta: 0.1, ..config.clone() };
    assert!(refused(d3po).contains("pairs: the store has steps, the run trajectories"));
    // Going on with other settings.
    let other = TrainConfig { seed: 7, ..config.clone() };
    let message = start(&model, &other, &Colourfulness).roll_out(&store, &mut Silent, &STOP).unwrap_err().to_string();
    assert!(message.contains("other settings") && message.contains("seed"), "{message}");
    // Damage is named by file.
    let file = store.join("rollout-000000.safetensors");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let error = replaying(&model, &config, &store).unwrap().run(&mut Silent, &STOP).unwrap_err().to_string();
    assert!(error.contains("rollout-000000.safetensors"), "{error}");
    std::fs::write(store.join("store.json"), "{}").unwrap();
    assert!(refused(config).contains("store.json"));
}
