//! Pictures drawn by DDIM from prompts, against `StableDiffusionXLPipeline`. Fixture: python/fixtures/sdxl.py.

use std::path::Path;

use seedpo_model::{Conditioning, DiffusionModel, LoadOptions, Policy};
use seedpo_rollout::{Ddim, GuidedPolicy, sample};
use seedpo_tensor::WeightFile;

use crate::toy::largest;

const PROMPTS: [&str; 2] = ["a red fox in the city", "a golden robot, 4k 😀"];

#[test]
fn pictures_equal_those_of_the_sdxl_pipeline() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/sdxl");
    let model = DiffusionModel::load(&folder, &LoadOptions::default()).unwrap();
    let file = WeightFile::open(&folder.join("expected.safetensors")).unwrap();
    let expected = |name: &str| file.tensor(name).unwrap();
    // The folder's Euler configuration, read as DDIM's: leading timesteps, offset 1, ᾱ_0 below timestep 0.
    let ddim = Ddim::new(&model.schedule, 8, 0.0).unwrap();
    assert_eq!(ddim.timesteps()[..2], [876, 751]);
    let prompts = model.encode_prompts(&PROMPTS).unwrap();
    for (negative, name) in [("", "sampled"), ("blurry house", "sampled_negative")] {
        let negative = model.encode_negative_prompt(negative).unwrap();
        let conditioning = Conditioning::new(&prompts, &negative, (16, 24));
        // At most one row: the passes of the first and the second prompt differ in what is added.
        let predictor = GuidedPolicy::new(Policy::new(&model, None), &conditioning, 5.0).with_max_rows(1);
        let drawn = sample(&predictor, &expected("latents"), &[0, 1], &ddim, &mut |_| None, &mut |_, _| ()).unwrap();
        let apart = largest(&(drawn.final_latents() - expected(name))) / largest(&expected(name));
        // Eight guided passes, each within 2e-5.
        assert!(apart < 2e-4, "{name}: {apart:.1e}");
        if name == "sampled" {
            let images = model.vae.decode_latents(drawn.final_latents()).unwrap();
            let apart = largest(&(images - expected("decoded"))) / largest(&expected("decoded"));
            assert!(apart < 2e-4, "decoded: {apart:.1e}");
        }
    }
}
