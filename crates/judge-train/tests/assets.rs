//! The committed judges of the built-in world know the rule that they were trained by.

use std::path::{Path, PathBuf};

use seedpo_data::{Options, Pairs};
use seedpo_judge::{ImageBatch, Judge, JudgeOptions, load};
use seedpo_judge_train::{EmojiCaptions, write_pairs};
use seedpo_tensor::Tensor;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn bytes(picture: &image::RgbImage) -> Tensor {
    Tensor::from_slice(picture.as_raw()).view([1, picture.height().into(), picture.width().into(), 3])
}

/// The share of pairs whose preferred picture has the higher score.
fn accuracy(judge: &dyn Judge, pairs: &Pairs) -> f64 {
    let right = |index: &usize| {
        let pair = pairs.pair(*index);
        let score = |id| {
            let batch = ImageBatch::from_tensor(&bytes(&pairs.picture(id).unwrap())).unwrap();
            judge.score_batch(&batch, &[pair.prompt]).unwrap()[0]
        };
        score(pair.winner) > score(pair.loser.unwrap())
    };
    (0..pairs.len()).filter(right).count() as f64 / pairs.len() as f64
}

#[test]
fn the_committed_judges_follow_their_rule() {
    let scratch = tempfile::tempdir().unwrap();
    let emoji = EmojiCaptions::read(&root().join("crates/pretrain/tests/fixtures/emoji")).unwrap();
    write_pairs(&scratch.path().join("pairs"), &emoji, 7).unwrap();
    let pairs = Pairs::open(&scratch.path().join("pairs"), &Options::default()).unwrap();
    for (name, least) in [("preference", 0.75), ("heldout", 0.75), ("step-aware", 0.7)] {
        let folder = root().join("assets/judges").join(name);
        let judge = load(&format!("emoji-{name}"), &[folder], &JudgeOptions::default()).unwrap();
        let found = accuracy(judge.as_ref(), &pairs);
        assert!(found > least, "{name}: {found} of {} pairs", pairs.len());
    }
}
