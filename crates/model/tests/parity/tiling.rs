//! Tiling and slicing of the autoencoder.

use std::path::Path;

use seedpo_model::{AutoencoderKl, Tiling, VaeConfig};
use seedpo_tensor::Kind;

use super::FORWARD;
use super::weights::{Fixture, relative};

fn vae(fixture: &Fixture) -> AutoencoderKl {
    let config = VaeConfig::from_json(fixture.config(), Path::new("vae/config.json")).unwrap();
    AutoencoderKl::new(config, fixture.params(Kind::Float)).unwrap()
}

#[test]
fn tiles_equal_diffusers_tiled_encode_and_decode() {
    let cases = Fixture::all("tiling");
    assert_eq!(cases.len(), 2);
    for (name, fixture) in cases {
        let (sample_size, latent_size, overlap) = serde_json::from_str(&fixture.metadata["tiling"]).unwrap();
        let tiling = Tiling { sample_size, latent_size, overlap };
        let vae = vae(&fixture);
        assert_eq!(tiling == Tiling::of(vae.config()), name == "default-tile");
        let whole = vae.decode(fixture.get("latents")).unwrap();
        assert!(relative(&whole, fixture.get("decoded")) > 100.0 * FORWARD, "{name}: tiling changes the picture");
        for slicing in [false, true] {
            let vae = self::vae(&fixture).with_tiling(Some(tiling)).with_slicing(slicing);
            let (mean, logvar) = vae.encode(fixture.get("images")).unwrap();
            fixture.check("mean", &mean, FORWARD);
            fixture.check("logvar", &logvar, FORWARD);
            fixture.check("decoded", &vae.decode(fixture.get("latents")).unwrap(), FORWARD);
        }
    }
}

#[test]
fn pictures_of_one_tile_are_not_cut_and_slices_change_nothing() {
    let fixture = Fixture::open("tiling", "default-tile");
    let latents = fixture.get("latents").narrow(2, 0, 8).narrow(3, 0, 8);
    let whole = vae(&fixture).decode(&latents).unwrap();
    let tiling = Some(Tiling::of(vae(&fixture).config()));
    let tiled = vae(&fixture).with_tiling(tiling).decode(&latents).unwrap();
    assert_eq!(whole, tiled);
    let sliced = vae(&fixture).with_slicing(true).decode(&latents).unwrap();
    assert!(relative(&sliced, &whole) < FORWARD);
}
