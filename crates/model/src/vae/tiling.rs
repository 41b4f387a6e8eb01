//! Large pictures in overlapping tiles, blended where they overlap: the memory of one tile (`AutoencoderKL.tiled_decode`
//! and `tiled_encode` of diffusers 0.38).

use tch::Tensor;

use crate::config::VaeConfig;

/// How pictures are cut. Equal to diffusers' `tile_sample_min_size`, `tile_latent_min_size` and `tile_overlap_factor`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiling {
    /// Side of a tile in pixels, at least 1; pictures no larger are not cut.
    pub sample_size: i64,
    /// Side of a tile in latents, at least 1; latents no larger are not cut.
    pub latent_size: i64,
    /// Share of a tile that overlaps its neighbour, 0 to below 1.
    pub overlap: f64,
}

/// One direction of the autoencoder, in the unit of its input (`tile`, `stride`) and of its output (`blend`, `keep`).
struct Cut {
    tile: i64,
    stride: i64,
    blend: i64,
    keep: i64,
}

impl Tiling {
    /// diffusers' own: tiles of the size the autoencoder was trained on, a quarter of which overlaps.
    pub fn of(config: &VaeConfig) -> Self {
        let latent_size = (config.sample_size / config.scale_factor()).max(1);
        Self { sample_size: config.sample_size.max(1), latent_size, overlap: 0.25 }
    }

    /// Whether images `[B, 3, H, W]` are larger than a tile.
    pub(super) fn cuts_images(&self, images: &Tensor) -> bool {
        larger(images, self.sample_size)
    }

    /// Whether latents `[B, C, h, w]` are larger than a tile.
    pub(super) fn cuts_latents(&self, latents: &Tensor) -> bool {
        larger(latents, self.latent_size)
    }

    /// What `encode` makes of images, tile by tile.
    pub(super) fn encode(&self, images: &Tensor, encode: impl Fn(&Tensor) -> Tensor) -> Tensor {
        self.cut(self.sample_size, self.latent_size).run(images, encode)
    }

    /// What `decode` makes of latents, tile by tile.
    pub(super) fn decode(&self, latents: &Tensor, decode: impl Fn(&Tensor) -> Tensor) -> Tensor {
        self.cut(self.latent_size, self.sample_size).run(latents, decode)
    }

    fn cut(&self, from: i64, to: i64) -> Cut {
        let stride = ((from as f64 * (1.0 - self.overlap)) as i64).max(1);
        let blend = (to as f64 * self.overlap) as i64;
        Cut { tile: from, stride, blend, keep: to - blend }
    }
}

fn larger(x: &Tensor, side: i64) -> bool {
    x.size()[2..].iter().any(|&size| size > side)
}

impl Cut {
    fn run(&self, x: &Tensor, pass: impl Fn(&Tensor) -> Tensor) -> Tensor {
        let starts = |dim: usize| (0..x.size()[dim]).step_by(self.stride as usize);
        let part =
            |x: &Tensor, dim: i64, start: i64| x.narrow(dim, start, self.tile.min(x.size()[dim as usize] - start));
        let mut rows = Vec::new();
        let mut above: Vec<Tensor> = Vec::new();
        for top in starts(2) {
            let band = part(x, 2, top);
            let mut row: Vec<Tensor> = Vec::new();
            for (column, left) in starts(3).enumerate() {
                let mut tile = pass(&part(&band, 3, left));
                if let Some(above) = above.get(column) {
                    tile = blend(above, &tile, self.blend, 2);
                }
                if let Some(before) = row.last() {
                    tile = blend(before, &tile, self.blend, 3);
                }
                row.push(tile);
            }
            let kept = |tile: &Tensor| {
                let least = |dim: usize| self.keep.min(tile.size()[dim]);
                tile.narrow(2, 0, least(2)).narrow(3, 0, least(3))
            };
            rows.push(Tensor::cat(&row.iter().map(kept).collect::<Vec<_>>(), 3));
            above = row;
        }
        Tensor::cat(&rows, 2)
    }
}

/// `tile` with the first `extent` lines along `dim` going over from the last ones of `before`, linearly.
fn blend(before: &Tensor, tile: &Tensor, extent: i64, dim: i64) -> Tensor {
    let (end, size) = (before.size()[dim as usize], tile.size()[dim as usize]);
    let extent = extent.min(end).min(size);
    if extent == 0 {
        return tile.shallow_clone();
    }
    let mut shape = [1; 4];
    shape[dim as usize] = extent;
    let weight = (Tensor::arange(extent, (tile.kind(), tile.device())) / extent as f64).reshape(shape);
    let blended = before.narrow(dim, end - extent, extent) * (1.0 - &weight) + tile.narrow(dim, 0, extent) * &weight;
    Tensor::cat(&[blended, tile.narrow(dim, extent, size - extent)], dim)
}
