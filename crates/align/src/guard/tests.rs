use super::*;
use seedpo_tensor::NoiseKey;

fn options(action: GuardAction) -> GuardOptions {
    let defaults = GuardOptions::from_settings(&TrainConfig::default()).unwrap();
    GuardOptions { action, ..defaults }
}

fn guard(action: GuardAction) -> Guard {
    Guard::new(options(action), GuardState::default())
}

/// An update of a healthy Diffusion-DPO run: a loss falling from ln 2 and scattered, rewards growing, norms scattered
/// over a decade.
fn healthy(update: u64) -> Vitals {
    let draw = |purpose: &'static str| NoiseKey::new(5, purpose).step(update).uniform();
    let progress = update as f64 / 400.0;
    Vitals {
        loss: (2f64.ln() - 0.3 * progress) * (0.7 + 0.6 * draw("loss")),
        winner_reward: 0.5 * progress + 0.4 * (draw("reward") - 0.5),
        grad_norm: 0.02 * 10f64.powf(draw("norm")),
    }
}

/// SDXL turning to noise: within a few updates the winners' error grows, the loss jumps and stays high.
fn collapsing(update: u64) -> Vitals {
    let since = (update - 200) as f64;
    let vitals = healthy(update);
    Vitals { loss: vitals.loss + 3.0 * since, winner_reward: -5.0 * since, grad_norm: vitals.grad_norm * 3.0 }
}

fn verdicts(guard: &mut Guard, updates: std::ops::Range<u64>) -> Vec<Verdict> {
    updates.map(|u| guard.judge(&if u <= 200 { healthy(u) } else { collapsing(u) })).collect()
}

fn drop_line(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Apply => "apply",
        Verdict::Note(_) => "note",
        Verdict::Skip(_) => "skip",
        Verdict::BackOff(_) => "back off",
        Verdict::RollBack(_) => "roll back",
        Verdict::Stop(_) => "stop",
    }
}

#[test]
fn a_healthy_run_is_left_alone_by_every_action() {
    for name in GuardAction::NAMES {
        let mut guard = guard(GuardAction::by_name(name).unwrap());
        for update in 0..400 {
            assert_eq!(guard.judge(&healthy(update)), Verdict::Apply, "{name} at update {update}");
        }
    }
}

/// The third update in a row that is out of line is where each action acts.
#[test]
fn a_collapse_after_a_loss_spike_is_caught_by_its_third_update() {
    for (action, expected) in [
        (GuardAction::Off, ["apply", "apply", "apply", "apply"]),
        (GuardAction::Stop, ["note", "note", "stop", "stop"]),
        (GuardAction::Skip, ["skip", "skip", "skip", "skip"]),
        (GuardAction::BackOff, ["skip", "skip", "back off", "skip"]),
        (GuardAction::RollBack, ["skip", "skip", "roll back", "roll back"]),
    ] {
        let mut guard = guard(action);
        assert!(verdicts(&mut guard, 0..201).iter().all(|v| *v == Verdict::Apply));
        let found = verdicts(&mut guard, 201..205);
        assert_eq!(found.iter().map(drop_line).collect::<Vec<_>>(), expected, "{action:?}");
    }
}

/// Diffusion-DPO's loss falls while both errors rise, as long as the loser's rises faster: only the winner tells.
#[test]
fn winners_that_get_worse_under_a_falling_loss_are_seen() {
    let mut guard = guard(GuardAction::Stop);
    verdicts(&mut guard, 0..201);
    let fooled = |u: u64| Vitals { winner_reward: -3.0 * (u - 200) as f64, ..healthy(u) };
    let found: Vec<_> = (201..204).map(|u| guard.judge(&fooled(u))).collect();
    assert_eq!(found.iter().map(drop_line).collect::<Vec<_>>(), ["note", "note", "stop"]);
    let Verdict::Stop(trouble) = &found[2] else { panic!("{found:?}") };
    assert!(trouble.sentence().contains("winners lost") && trouble.limit < 9.0, "{}", trouble.sentence());
}

#[test]
fn one_spike_alone_changes_nothing_but_its_own_update() {
    let mut guard = guard(GuardAction::RollBack);
    verdicts(&mut guard, 0..100);
    let before = guard.state.baseline.clone();
    assert_eq!(drop_line(&guard.judge(&Vitals { grad_norm: 1e3, ..healthy(100) })), "skip");
    assert_eq!(guard.state.baseline, before, "spikes do not enter the statistics");
    assert_eq!(guard.judge(&healthy(101)), Verdict::Apply);
    assert_eq!((guard.state.spikes, guard.state.actions), (0, 0));
}

#[test]
fn numbers_that_are_not_finite_need_no_statistics() {
    for (action, expected) in [
        (GuardAction::Off, "stop"),
        (GuardAction::Stop, "stop"),
        (GuardAction::Skip, "skip"),
        (GuardAction::BackOff, "back off"),
        (GuardAction::RollBack, "roll back"),
    ] {
        for vitals in [Vitals { loss: f64::NAN, ..healthy(0) }, Vitals { grad_norm: f64::INFINITY, ..healthy(0) }] {
            assert_eq!(drop_line(&guard(action).judge(&vitals)), expected);
        }
    }
}

#[test]
fn the_learning_rate_comes_back_after_updates_in_line() {
    let mut guard = guard(GuardAction::BackOff);
    let nan = Vitals { loss: f64::NAN, ..healthy(0) };
    guard.judge(&nan);
    guard.judge(&nan);
    assert_eq!(guard.learning_rate_factor(), 0.25);
    let cooldown = options(GuardAction::BackOff).cooldown;
    (0..cooldown - 1).for_each(|u| assert_eq!(guard.judge(&healthy(u)), Verdict::Apply));
    assert_eq!(guard.learning_rate_factor(), 0.25);
    guard.judge(&healthy(cooldown));
    assert_eq!(guard.learning_rate_factor(), 0.5);
    (0..cooldown).for_each(|u| drop(guard.judge(&healthy(u))));
    assert_eq!(guard.learning_rate_factor(), 1.0);
}

#[test]
fn every_action_is_bounded() {
    let nan = Vitals { loss: f64::NAN, ..healthy(0) };
    for action in [GuardAction::Skip, GuardAction::BackOff, GuardAction::RollBack] {
        let mut guard = guard(action);
        let limit = options(action).limit as usize;
        let found: Vec<_> = (0..=limit)
            .map(|_| {
                let verdict = guard.judge(&nan);
                if matches!(verdict, Verdict::RollBack(_)) {
                    guard.rolled_back_to(GuardState::default());
                }
                verdict
            })
            .collect();
        assert!(found[..limit].iter().all(|v| !matches!(v, Verdict::Stop(_))), "{action:?}");
        assert!(matches!(found[limit], Verdict::Stop(_)), "{action:?}");
    }
}

#[test]
fn memory_survives_json_to_the_bit() {
    let mut guard = guard(GuardAction::BackOff);
    verdicts(&mut guard, 0..203);
    let text = serde_json::to_string(&guard.state).unwrap();
    let mut resumed = Guard::new(guard.options, serde_json::from_str(&text).unwrap());
    assert_eq!(guard, resumed);
    assert_eq!(verdicts(&mut guard, 203..210), verdicts(&mut resumed, 203..210));
}
