use super::*;
use crate::metrics::PreviewMetrics;

fn config(folder: &Path) -> TrainConfig {
    TrainConfig {
        model: "m".into(),
        prompts: vec!["a".into()],
        max_train_steps: 10,
        output_dir: folder.display().to_string(),
        name: "run".into(),
        ..Default::default()
    }
}

fn create(folder: &Path) -> RunDir {
    let versions = BTreeMap::from([("seedpo".to_string(), "0.1.0".to_string())]);
    let inputs = InputHashes::from([("unet/config.json".to_string(), "ab".to_string())]);
    RunDir::create(&config(folder), &versions, &inputs).unwrap()
}

fn preview(step: u64) -> Record {
    Record::Preview(PreviewMetrics { step, reward_mean: 0.1, ..PreviewMetrics::default() })
}

#[test]
fn a_taken_name_gets_a_number_and_nothing_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<_> = (0..3).map(|_| create(folder.path()).path().file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["run", "run-2", "run-3"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn settings_and_hashes_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let (read, inputs) = create(folder.path()).recorded().unwrap();
    assert_eq!(read, config(folder.path()));
    assert_eq!(inputs["unet/config.json"], "ab");
}

#[test]
fn settings_of_another_version_say_which() {
    let folder = tempfile::tempdir().unwrap();
    let run = create(folder.path());
    let path = run.path().join(CONFIG_FILE);
    let text = fs::read_to_string(&path).unwrap().replace("seedpo = \"0.1.0\"", "seedpo = \"9.8.7\"");
    fs::write(&path, text.replace("beta =", "warp = 3\nbeta =")).unwrap();
    let message = run.recorded().unwrap_err().to_string();
    assert!(["`warp`", "9.8.7", env!("CARGO_PKG_VERSION")].iter().all(|part| message.contains(part)), "{message}");
}

#[test]
fn rewinding_drops_later_lines_and_a_torn_one() {
    let folder = tempfile::tempdir().unwrap();
    let run = create(folder.path());
    for step in 0..4 {
        run.append(&preview(step)).unwrap();
    }
    let before = fs::read_to_string(run.metrics()).unwrap();
    fs::write(run.metrics(), format!("{before}{{\"kind\": \"upd")).unwrap();
    run.rewind(Some(2)).unwrap();
    assert_eq!(
        fs::read_to_string(run.metrics()).unwrap(),
        before.lines().take(3).map(|l| format!("{l}\n")).collect::<String>()
    );
    run.rewind(None).unwrap();
    assert!(run.records().unwrap().is_empty());
}

/// Lines stay as they are, those of numbers that JSON does not have included; the guard's stay if an update after them does.
#[test]
fn rewinding_keeps_lines_that_cannot_be_read_and_what_the_guard_did_before() {
    let folder = tempfile::tempdir().unwrap();
    let run = create(folder.path());
    let lines = [
        r#"{"kind":"update","step":1,"loss":null}"#,
        r#"{"kind":"guard","step":9,"action":"roll-back"}"#,
        r#"{"kind":"update","step":2,"future":true}"#,
        r#"{"kind":"guard","step":3,"action":"skip"}"#,
        r#"{"kind":"update","step":3}"#,
    ];
    fs::write(run.metrics(), lines.map(|line| format!("{line}\n")).concat()).unwrap();
    run.rewind(Some(2)).unwrap();
    assert_eq!(
        fs::read_to_string(run.metrics()).unwrap(),
        lines[..3].iter().map(|l| format!("{l}\n")).collect::<String>()
    );
}

#[test]
fn a_run_folder_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let run = create(folder.path());
    let held = run.lock().unwrap();
    let message = run.lock().unwrap_err().to_string();
    assert!(message.contains("another process") && message.contains("run"), "{message}");
    drop(held);
    assert!(run.lock().is_ok());
}

#[test]
fn resume_finds_the_run_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let run = create(folder.path());
    let of = |text: &str, name: &str| RunDir::resolve(text, folder.path(), name).map(|(run, c)| (run, c.is_some()));
    assert_eq!(of(run.path().to_str().unwrap(), "").unwrap(), (run.clone(), false));
    assert_eq!(of("latest", "").unwrap(), (run.clone(), false));
    assert_eq!(of("latest", "run").unwrap().0, run);
    assert!(of("latest", "other").unwrap_err().to_string().contains("called other"));
    assert!(of("no/such/run", "").unwrap_err().to_string().contains("no/such/run"));
    let position = crate::checkpoint::Position { step: 4, iteration: 2, updates_done: 0 };
    let saved = Checkpoint::save(run.path(), position, &BTreeMap::new(), |_| Ok(())).unwrap();
    assert!(of(run.path().to_str().unwrap(), "").unwrap().1);
    assert_eq!(of(saved.to_str().unwrap(), "").unwrap(), (run, true));
}

#[test]
fn changed_settings_are_refused_by_key_but_length_may_grow() {
    let folder = tempfile::tempdir().unwrap();
    let run = create(folder.path());
    let (recorded, _) = run.recorded().unwrap();
    let resume = |text: &str| resume_settings(&run, &recorded, &text.parse().unwrap()).map_err(|e| e.to_string());
    assert_eq!(resume("max_train_steps = 20\nresume = 'latest'").unwrap().max_train_steps, 20);
    assert_eq!(resume("beta = 10").unwrap().beta, 10.0);
    assert_eq!(resume("train_micro_batch_size = 1\nvae_slicing = true").unwrap().train_micro_batch_size, 1);
    assert_eq!(resume("model = 'moved'").unwrap().model, "moved");
    let message = resume("max_train_steps = 5\nbeta = 3.0\nentropy = { gamma = 2 }").unwrap_err();
    assert!(["max_train_steps", "beta", "entropy.gamma"].iter().all(|key| message.contains(key)), "{message}");
    assert!(!message.contains("learning_rate"));
    let cosine = TrainConfig { lr_scheduler: "cosine".into(), ..recorded };
    assert!(resume_settings(&run, &cosine, &"max_train_steps = 20".parse().unwrap()).is_err());
}

#[test]
fn changed_inputs_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let run = create(folder.path());
    let hashes =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect::<InputHashes>();
    let before = hashes(&[("a", "1"), ("b", "2")]);
    assert!(check_inputs(&run, &before, &before).is_ok());
    let message = check_inputs(&run, &before, &hashes(&[("a", "1"), ("b", "3"), ("c", "4")])).unwrap_err().to_string();
    assert!(message.contains("b, c"), "{message}");
}
