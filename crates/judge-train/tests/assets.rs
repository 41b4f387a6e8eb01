//! The committed judges of the built-in world know the rule that they were trained by.

use std::path::{Path, PathBuf};

use seedpo_data::{Options, Pair, Pairs};
use seedpo_judge::{ImageBatch, Judge, JudgeOptions, StepJudge, load};
use seedpo_judge_train::{Draws, EmojiCaptions, Noising, part_of, write_pairs};
use seedpo_model::{DiffusionModel, LoadOptions};
use seedpo_tensor::{Kind, NoiseKey, Tensor};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn bytes(picture: &image::RgbImage) -> Tensor {
    Tensor::from_slice(picture.as_raw()).view([1, picture.height().into(), picture.width().into(), 3])
}

fn committed(name: &str) -> Box<dyn Judge> {
    let folder = root().join("assets/judges").join(name);
    load(&format!("emoji-{name}"), &[folder], &JudgeOptions::default()).unwrap()
}

/// The pairs of a half of the emoji (1 or 2), at most `limit` of them.
fn of_half(pairs: &Pairs, half: u64, limit: usize) -> Vec<Pair<'_>> {
    let all = (0..pairs.len()).map(|index| pairs.pair(index));
    let found: Vec<_> = all.filter(|pair| part_of(pair.prompt, 2) == half).take(limit).collect();
    assert!(found.len() > 20, "half {half} has {} pairs", found.len());
    found
}

/// The share of `pairs` whose preferred picture has the higher score.
fn accuracy(pairs: &[Pair<'_>], score: impl Fn(&Pair<'_>, seedpo_data::PictureId) -> f64) -> f64 {
    let right = pairs.iter().filter(|pair| score(pair, pair.winner) > score(pair, pair.loser.unwrap()));
    right.count() as f64 / pairs.len() as f64
}

#[test]
fn the_committed_judges_follow_their_rule() {
    let scratch = tempfile::tempdir().unwrap();
    let emoji = EmojiCaptions::read(&root().join("crates/pretrain/tests/fixtures/emoji")).unwrap();
    write_pairs(&scratch.path().join("pairs"), &emoji, 7).unwrap();
    let pairs = Pairs::open(&scratch.path().join("pairs"), &Options::default()).unwrap();
    // Each on the half that it never saw.
    for (name, half, least) in [("preference", 2, 0.75), ("heldout", 1, 0.65), ("step-aware", 2, 0.7)] {
        let judge = committed(name);
        let found = accuracy(&of_half(&pairs, half, usize::MAX), |pair, id| {
            let batch = ImageBatch::from_tensor(&bytes(&pairs.picture(id).unwrap())).unwrap();
            judge.score_batch(&batch, &[pair.prompt]).unwrap()[0]
        });
        assert!(found > least, "{name}: {found}");
    }
    step_aware_knows_noised_pictures(&pairs);
}

/// The step-aware judge on what emoji-sd predicts from pictures noised to t = 251.
fn step_aware_knows_noised_pictures(pairs: &Pairs) {
    let options = LoadOptions::default();
    let noising =
        Noising::new(DiffusionModel::load(&root().join("assets/emoji-sd"), &options).unwrap(), 5.0, 64).unwrap();
    let judge = committed("step-aware");
    let judge = StepJudge::new(judge.as_ref(), |pictures| Ok::<_, std::convert::Infallible>(pictures.shallow_clone()));
    let found = accuracy(&of_half(pairs, 2, 60), |pair, id| {
        let picture = bytes(&pairs.picture(id).unwrap()).permute([0, 3, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0;
        // Both pictures of a call are this one: scores of pairs need the same noise, not the same batch.
        let shape = noising.latent_shape();
        let draw = |name, rows: usize| {
            let keys = vec![NoiseKey::new(3, name); rows];
            Tensor::cat(&keys.iter().map(|key| key.normal(&shape).unsqueeze(0)).collect::<Vec<_>>(), 0)
        };
        let draws = Draws { posterior: draw("posterior", 2), noise: draw("noise", 1) };
        let twice = Tensor::cat(&[&picture, &picture], 0);
        let seen = noising.predicted(&twice, &[pair.prompt.to_owned()], &[251], &draws).unwrap();
        judge.score(&seen.slice(0, 0, 1, 1), 251, &[pair.prompt]).unwrap()[0]
    });
    assert!(found > 0.7, "at t = 251: {found}");
}
