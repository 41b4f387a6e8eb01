use super::*;

fn options() -> WatchOptions {
    WatchOptions {
        action: WatchAction::Warn,
        patience: 2,
        errors: 2.0,
        heldout_drop: 0.8,
        diversity_drop: 0.15,
        gamma_step: 0.5,
        gamma_max: 1.2,
    }
}

/// 17 scores around `mean`, of standard deviation 1; `turn` decides which image has which.
fn scores(mean: f64, turn: usize) -> Vec<f64> {
    let spread = |i: usize| (i as f64 - 8.0) / 24f64.sqrt();
    (0..17).map(|i| mean + spread((i * (turn + 1)) % 17)).collect()
}

/// The scores of two steps differ by their means and by noise of about one standard deviation: a standard error of 0.3.
fn preview(step: u64, reward: f64, heldout: f64, rmse: f64) -> PreviewMetrics {
    let measured = [("rmse", rmse), ("psnr", 12.0 - 10.0 * (rmse - 0.3)), ("entropy", 20.0 * rmse)];
    PreviewMetrics {
        step,
        scores: scores(reward, step as usize / 10),
        reward_mean: reward,
        reward_std: 1.0,
        judges: BTreeMap::new(),
        heldout_mean: Some(heldout),
        heldout: BTreeMap::from([(
            "other".to_owned(),
            Heldout { mean: heldout, scores: scores(heldout, step as usize / 10) },
        )]),
        kl_to_reference: Some(0.0),
        measured: measured.map(|(name, value)| (name.to_owned(), value)).into(),
        seconds: 1.0,
    }
}

#[test]
fn reward_up_and_heldout_down_twice_is_a_finding() {
    let previews = [preview(0, 0.0, 5.0, 0.3), preview(10, 2.0, 4.0, 0.3), preview(20, 3.0, 3.5, 0.3)];
    assert_eq!(assess(&previews[..2], &options()), None, "one preview is not yet a trend");
    let found = assess(&previews, &options()).unwrap();
    assert_eq!((found.since, found.diversity_change), (0, None));
    assert!((found.reward_rise - 3.0).abs() < 1e-9 && (found.heldout_falls["other"] - 1.5).abs() < 1e-9, "{found:?}");
    assert_eq!(found.sentence(), "since update 0 the reward rose by 3.0000 while other (held out) fell by 1.5000");
}

#[test]
fn lost_diversity_is_a_finding_by_its_median() {
    let previews = [preview(0, 0.0, 5.0, 0.4), preview(10, 2.0, 5.0, 0.3), preview(20, 3.0, 5.0, 0.2)];
    let found = assess(&previews, &options()).unwrap();
    // rmse and entropy lose a quarter, psnr worsens by 9 %: the median is a quarter, on to a half at the last.
    assert!(found.diversity_change.unwrap() < -0.15 && found.heldout_falls.is_empty(), "{found:?}");
    let slight = [preview(0, 0.0, 5.0, 0.4), preview(10, 2.0, 5.0, 0.38), preview(20, 3.0, 5.0, 0.36)];
    assert_eq!(assess(&slight, &options()), None);
}

#[test]
fn noise_and_honest_progress_are_no_findings() {
    let within_error = [preview(0, 0.0, 5.0, 0.3), preview(10, 2.0, 4.6, 0.3), preview(20, 3.0, 4.5, 0.3)];
    assert_eq!(assess(&within_error, &options()), None, "held-out fell by less than two standard errors");
    let slight = [preview(0, 0.0, 5.0, 0.3), preview(10, 2.0, 4.3, 0.3), preview(20, 3.0, 4.3, 0.3)];
    assert_eq!(assess(&slight, &options()), None, "beyond doubt, but a small effect");
    let both_rise = [preview(0, 0.0, 5.0, 0.3), preview(10, 2.0, 6.0, 0.3), preview(20, 3.0, 7.0, 0.31)];
    assert_eq!(assess(&both_rise, &options()), None);
    let reward_falls = [preview(0, 3.0, 5.0, 0.3), preview(10, 2.0, 3.0, 0.2), preview(20, 1.0, 2.0, 0.1)];
    assert_eq!(assess(&reward_falls, &options()), None, "a run that only gets worse is not hacking its reward");
    let dip = [preview(0, 0.0, 5.0, 0.3), preview(10, 2.0, 3.0, 0.3), preview(20, 3.0, 5.0, 0.3)];
    assert_eq!(assess(&dip, &options()), None, "it came back");
    let without_scores = [preview(0, 0.0, 5.0, 0.3), preview(10, 9.0, 1.0, 0.3), preview(20, 9.0, 1.0, 0.3)]
        .map(|m| PreviewMetrics { scores: Vec::new(), ..m });
    assert_eq!(assess(&without_scores, &options()), None, "previews of an older version");
}

#[test]
fn a_fall_from_a_later_peak_is_found() {
    let previews =
        [preview(0, 0.0, 3.0, 0.3), preview(10, 2.0, 5.0, 0.3), preview(20, 4.0, 3.9, 0.3), preview(30, 5.0, 3.8, 0.3)];
    assert_eq!(assess(&previews, &options()).unwrap().since, 10);
}

/// `tests/hacked_run.jsonl` is metrics.jsonl of a run that did hack its reward (docs/reward-hacking.md has the command).
#[test]
fn the_recorded_hacked_run_is_found() {
    let text = include_str!("hacked_run.jsonl");
    let records: Vec<Record> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let previews: Vec<PreviewMetrics> =
        records.into_iter().filter_map(|record| if let Record::Preview(m) = record { Some(m) } else { None }).collect();
    let at = (1..=previews.len()).find(|&count| assess(&previews[..count], &options()).is_some());
    let found = assess(&previews[..at.expect("a finding")], &options()).unwrap();
    assert!(found.diversity_change.is_some() || !found.heldout_falls.is_empty());
    assert!(at.unwrap() > 2, "a trend takes at least three previews");
}

#[test]
fn a_finding_is_not_found_again_and_gamma_grows_up_to_its_limit() {
    let event = |step, gamma| {
        let what = String::new();
        Record::Watch(crate::metrics::WatchEvent { step, action: "raise-gamma".into(), what, gamma })
    };
    let previews = [preview(0, 0.0, 5.0, 0.3), preview(10, 2.0, 4.0, 0.3), preview(20, 3.0, 3.5, 0.3)];
    let mut records: Vec<Record> = previews.iter().cloned().map(Record::Preview).collect();
    assert_eq!(since_last_finding(&records), (previews.to_vec(), 0));
    records.push(event(20, Some(0.5)));
    records.push(Record::Preview(preview(30, 3.1, 3.5, 0.3)));
    let (rest, raises) = since_last_finding(&records);
    assert_eq!((rest.len(), raises), (2, 1));
    assert_eq!(assess(&rest, &options()), None);
    let grown = [0, 1, 2, 3].map(|raises| options().gamma(0.25, raises));
    assert_eq!(grown, [0.25, 0.75, 1.2, 1.2]);
    assert_eq!(options().gamma(2.0, 3), 2.0, "one that begins above the limit stays");
}
