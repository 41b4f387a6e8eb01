//! Datasets: streamed and decoded ahead, resumed, weighted, with bad pictures and empty prompts.

use super::*;

/// More pairs than are kept encoded, over the three pairs of pictures that [`write_pairs`] makes.
const MANY: usize = 4200;

fn streamed(folder: &Path) -> TrainConfig {
    let config = TrainConfig { prompts_per_iteration: 3, ..config(folder, "diffusion-dpo") };
    let lines: Vec<String> = (0..MANY)
        .map(|i| {
            let prompt = ["a", "b", "c"][usize::from(i % 7 == 0) + usize::from(i % 11 == 0)];
            format!(r#"{{"prompt": "{prompt}", "winner": "{0}w.png", "loser": "{1}l.png"}}"#, i % 3, i / 3 % 3)
        })
        .collect();
    std::fs::write(&config.pairs_file, lines.join("\n")).unwrap();
    config
}

fn trained(model: &DiffusionModel, config: &TrainConfig) -> Vec<u8> {
    let mut trainer = start(model, config, &Colourfulness);
    assert_eq!(trainer.run(&mut Silent, &STOP).unwrap(), Finished::Completed);
    let (run, _) = RunDir::resolve("latest", Path::new(&config.output_dir), "").unwrap();
    adapter(run.path())
}

/// Threads that decode ahead change nothing, and a stopped run goes on bit for bit, also within an iteration.
#[test]
fn a_streamed_dataset_gives_the_same_adapter_whatever_decodes_it_and_wherever_it_stopped() {
    let (model, folder) = (common::tiny_model(), tempfile::tempdir().unwrap());
    let config = streamed(folder.path());
    let whole = trained(&model, &TrainConfig { dataloader_num_workers: 0, ..config.clone() });
    for workers in [1, 3] {
        let config = TrainConfig { dataloader_num_workers: workers, ..config.clone() };
        assert_eq!(trained(&model, &config), whole, "{workers} workers");
    }
    for step in [1, 3, 4] {
        let stop = AtomicBool::new(false);
        let config = TrainConfig { name: format!("stopped-{step}"), ..config.clone() };
        let mut first = start(&model, &config, &Colourfulness);
        assert_eq!(first.run(&mut StopAt(step, &stop), &stop).unwrap(), Finished::Interrupted);
        let path = folder.path().join(&config.name);
        let (run, checkpoint) = RunDir::resolve(path.to_str().unwrap(), folder.path(), "").unwrap();
        run.rewind(Some(step)).unwrap();
        open(&model, &config, &Colourfulness, run, checkpoint).run(&mut Silent, &STOP).unwrap();
        assert_eq!(adapter(&path), whole, "stopped after update {step}");
    }
}

/// Pictures that are their own mirror images are trained on as they are; others are not, and a stopped run goes on alike.
#[test]
fn mirrored_pairs_are_drawn_anew_in_every_pass_and_resumed_alike() {
    let (model, folder) = (common::tiny_model(), tempfile::tempdir().unwrap());
    let config = TrainConfig { prompts_per_iteration: 3, ..config(folder.path(), "diffusion-dpo") };
    let flipped = TrainConfig { random_flip: true, ..config.clone() };
    let whole = trained(&model, &flipped);
    assert_ne!(whole, trained(&model, &config));
    let stop = AtomicBool::new(false);
    let mut first = start(&model, &flipped, &Colourfulness);
    assert_eq!(first.run(&mut StopAt(4, &stop), &stop).unwrap(), Finished::Interrupted);
    let (run, checkpoint) = RunDir::resolve("latest", folder.path(), "").unwrap();
    run.rewind(Some(4)).unwrap();
    open(&model, &flipped, &Colourfulness, run.clone(), checkpoint).run(&mut Silent, &STOP).unwrap();
    assert_eq!(adapter(run.path()), whole);
    for name in ["0w", "0l", "1w", "1l", "2w", "2l"] {
        let path = folder.path().join(format!("{name}.png"));
        let mut picture = image::open(&path).unwrap().to_rgb8();
        let mirror = image::imageops::flip_horizontal(&picture);
        picture.enumerate_pixels_mut().filter(|(x, ..)| *x >= 20).for_each(|(x, y, p)| *p = *mirror.get_pixel(x, y));
        picture.save(&path).unwrap();
    }
    assert_eq!(trained(&model, &flipped), trained(&model, &config));
    let sampled = TrainConfig { random_flip: true, ..super::config(folder.path(), "d3po") };
    assert!(sampled.validate().unwrap_err().to_string().contains("random_flip"));
}

/// Of several captions one is drawn in every pass, keyed by pass and pair; a list of one is that caption.
#[test]
fn captions_are_drawn_anew_in_every_pass() {
    let (model, folder) = (common::tiny_model(), tempfile::tempdir().unwrap());
    let config = TrainConfig { prompts_per_iteration: 3, ..config(folder.path(), "diffusion-dpo") };
    let lines = std::fs::read_to_string(&config.pairs_file).unwrap();
    let with = |captions: &str| {
        std::fs::write(&config.pairs_file, lines.replace("\"a\"", captions)).unwrap();
        trained(&model, &config)
    };
    let plain = with("\"a\"");
    assert_eq!(with("[\"a\"]"), plain);
    assert_eq!(with("[\"a\", \"a\"]"), plain);
    let drawn = with("[\"a\", \"another\"]");
    assert_ne!(drawn, plain);
    assert_ne!(drawn, with("\"another\""), "not always the same one");
    assert_eq!(drawn, with("[\"a\", \"another\"]"));
}

#[test]
fn weights_and_empty_prompts_take_effect() {
    let (model, folder) = (common::tiny_model(), tempfile::tempdir().unwrap());
    let config = TrainConfig { max_train_steps: 2, ..streamed(folder.path()) };
    let plain = trained(&model, &config);
    assert_ne!(trained(&model, &TrainConfig { pair_weighting: "per-prompt".into(), ..config.clone() }), plain);
    let dropping = TrainConfig { proportion_empty_prompts: 0.9, ..config };
    let dropped = trained(&model, &dropping);
    assert_ne!(dropped, plain);
    assert_eq!(trained(&model, &dropping), dropped);
}

/// Pictures that cannot be decoded are passed over and recorded; above the limit the run stops with the list, also where
/// some of them were found before it was resumed.
#[test]
fn bad_pictures_are_passed_over_within_the_limit() {
    let (model, folder) = (common::tiny_model(), tempfile::tempdir().unwrap());
    let config = TrainConfig { bad_rows_limit: 0.4, num_train_epochs: 2, ..config(folder.path(), "diffusion-dpo") };
    std::fs::write(folder.path().join("1l.png"), "no picture").unwrap();
    let mut trainer = start(&model, &config, &Colourfulness);
    assert_eq!(trainer.run(&mut Silent, &STOP).unwrap(), Finished::Completed);
    let run = folder.path().join("run");
    let recorded = std::fs::read_to_string(run.join("bad_rows.jsonl")).unwrap();
    assert_eq!(recorded.lines().count(), 1);
    assert!(recorded.contains("pairs.jsonl line 2") && recorded.contains("1l.png"), "{recorded}");
    assert_eq!(trainer.position().step, 4, "two of three pairs, twice");
    // Another one is too many: two of three.
    std::fs::write(folder.path().join("2w.png"), "no picture").unwrap();
    let longer = TrainConfig { num_train_epochs: 4, max_train_steps: 100, ..config };
    let (run, checkpoint) = RunDir::resolve(run.to_str().unwrap(), folder.path(), "").unwrap();
    let error = open(&model, &longer, &Colourfulness, run, checkpoint).run(&mut Silent, &STOP).unwrap_err().to_string();
    for part in ["2 of 3 rows are bad", "1l.png", "2w.png", "40 %"] {
        assert!(error.contains(part), "{part:?} not in {error}");
    }
}
