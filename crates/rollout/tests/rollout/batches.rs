//! The same prompt gets the same image whatever the batch size, through a real U-Net, VAE and guidance.

use seedpo_model::{Conditioning, Policy};
use seedpo_rollout::{Ddim, GuidedPolicy, NoisePredictor, Trajectory, initial_noise, sample, step_noise};
use tch::{Kind, Tensor};

use crate::common::tiny_model;
use crate::toy::{keys, largest, same};

const ROWS: usize = 8;
const SHAPE: [i64; 3] = [4, 8, 8];

fn prompts() -> Vec<String> {
    (0..ROWS).map(|i| format!("prompt {i}")).collect()
}

#[test]
fn a_prompt_s_image_does_not_depend_on_the_batch() {
    tch::set_num_threads(1);
    let model = tiny_model();
    let embeds = model.encode_prompts(&prompts()).unwrap();
    let conditioning = Conditioning::new(&embeds, &model.encode_negative_prompt("").unwrap(), (64, 64));
    let predictor = GuidedPolicy::new(Policy::new(&model, None), &conditioning, 5.0);
    let ddim = Ddim::new(&model.schedule, 10, 1.0).unwrap();
    let keys = keys(ROWS);
    let mut spread = [0.0f64; 2];
    let whole = run(&predictor, &ddim, &(0..ROWS).collect::<Vec<_>>(), &keys);
    let images = tch::no_grad(|| model.vae.decode_latents(whole.final_latents())).unwrap();
    for size in [1, 3] {
        for rows in (0..ROWS).collect::<Vec<_>>().chunks(size) {
            let part: Vec<_> = rows.iter().map(|&row| keys[row]).collect();
            let alone = run(&predictor, &ddim, rows, &part);
            let (start, count) = (rows[0] as i64, rows.len() as i64);
            let here = |x: &Tensor| x.narrow(0, start, count);
            // The draws themselves are the same bits; libtorch's kernels may add in another order for another batch.
            assert!(same(&alone.latents[0], &here(&whole.latents[0])));
            assert!(same(&step_noise(&part, 3, &SHAPE), &here(&step_noise(&keys, 3, &SHAPE))));
            spread[0] = spread[0].max(largest(&(alone.final_latents() - here(whole.final_latents()))));
            let image = tch::no_grad(|| model.vae.decode_latents(alone.final_latents())).unwrap();
            spread[1] = spread[1].max(largest(&(image - here(&images))));
        }
    }
    println!("batch 1 and 3 against 8: latents differ by {:.1e}, images by {:.1e}", spread[0], spread[1]);
    assert!(spread[0] < 1e-4, "latents: {}", spread[0]);
    assert!(spread[1] < 2.0 / 255.0, "images, in [-1, 1]: {}", spread[1]);
    let apart = largest(&(images.get(0) - images.get(1)));
    assert!(apart > 10.0 * spread[1].max(1e-3), "prompts and noises differ: {apart}");
}

fn run(predictor: &dyn NoisePredictor, ddim: &Ddim, rows: &[usize], keys: &[seedpo_tensor::NoiseKey]) -> Trajectory {
    let x_t = initial_noise(keys, &SHAPE);
    sample(predictor, &x_t, rows, ddim, &mut |step| Some(step_noise(keys, step, &SHAPE)), &mut |_, _| {}).unwrap()
}

#[test]
fn a_bounded_pass_gives_the_same_prediction_and_counts_branches() {
    tch::set_num_threads(1);
    let model = tiny_model();
    let embeds = model.encode_prompts(&prompts()).unwrap();
    let conditioning = Conditioning::new(&embeds, &model.encode_negative_prompt("").unwrap(), (64, 64));
    let policy = Policy::new(&model, None);
    let whole = GuidedPolicy::new(policy, &conditioning, 5.0);
    let keys = keys(5);
    let x = initial_noise(&keys, &SHAPE);
    let (t, rows) = ([951, 1, 401, 401, 51], [4, 0, 2, 2, 7]);
    let once = whole.predict(&x, &t, &rows).unwrap();
    let split = whole.with_max_rows(2).predict(&x, &t, &rows).unwrap();
    assert!(largest(&(&once - split)) < 1e-5);
    assert_eq!((whole.branches(), GuidedPolicy::new(policy, &conditioning, 1.0).branches()), (2, 1));
    assert!(once.kind() == Kind::Float && !once.requires_grad());
    assert!(whole.predict(&x, &t[..4], &rows).unwrap_err().to_string().contains("rows"));
}
