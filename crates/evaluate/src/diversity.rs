//! How different the images of one prompt are from each other (docs/methods.md section 5).
//!
//! All of these look at N ≥ 2 images of one prompt; [`mean_diversity`] averages over prompts.
//!
//! | metric | definition here | more diverse is |
//! | --- | --- | --- |
//! | RMSE | √MSE of a pair over all pixels and channels, u8 levels 0..255, mean over pairs | higher |
//! | PSNR | 10·log10(255²/MSE) in dB, mean over pairs; [`PSNR_CAP`] for equal images | lower |
//! | SSIM | Wang et al. 2004, 7×7 uniform window, sample covariance, mean over windows and channels (scikit-image's default), mean over pairs | lower |
//! | entropy | Shannon entropy in bits of the 256-bin histogram of ITU-R 601 grey levels, mean over images | higher |
//! | E1, E2 | kernel entropies in nats of the embeddings' cosine similarities | higher |
//!
//! The sources name RMSE, PSNR, SSIM and entropy without their scale, window or channel; the table's choices are
//! **[our reading]**, as is the whole definition of E1 and E2.

use crate::images::Images;
use crate::ssim::Prepared;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// PSNR reported for a pair of equal images, whose own is infinite, in dB. Unequal u8 images of 1 megapixel stay
/// below 113 dB, those of 64×64 below 90 dB.
pub const PSNR_CAP: f64 = 120.0;

/// The diversity of a set of images, pixel metrics only; see the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Diversity {
    /// Mean pairwise root mean square error, u8 levels, 0 to 255; higher is more diverse.
    pub rmse: f64,
    /// Mean pairwise peak signal-to-noise ratio, dB; lower is more diverse.
    pub psnr: f64,
    /// Mean pairwise structural similarity, −1 to 1; lower is more diverse.
    pub ssim: f64,
    /// Mean Shannon entropy of the grey-level histogram, bits, 0 to 8; higher is more diverse.
    pub entropy: f64,
}

impl Diversity {
    /// Name and value of each metric, named as reports and `metrics.jsonl` name them.
    pub fn named(&self) -> [(&'static str, f64); 4] {
        [("rmse", self.rmse), ("psnr", self.psnr), ("ssim", self.ssim), ("entropy", self.entropy)]
    }
}

/// Kernel entropies of image embeddings; see [`kernel_entropies`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KernelEntropies {
    /// −Σ λ ln λ, nats, 0 to ln N.
    pub e1: f64,
    /// −ln Σ λ², nats, 0 to ln N; never above `e1`.
    pub e2: f64,
}

/// Diversity of N images of one prompt: u8 `[N, H, W, 3]`, N ≥ 2, sides of at least 7 pixels.
///
/// Errors: [`Error::Shape`].
pub fn diversity(images: &Tensor) -> Result<Diversity> {
    let images = Images::from_tensor("diversity", images)?;
    if images.count < 2 {
        return Err(Error::Shape {
            what: "diversity",
            expected: "at least 2 images of one prompt".to_owned(),
            found: images.count.to_string(),
        });
    }
    let prepared = (0..images.count)
        .map(|i| Prepared::new(images.image(i), images.height, images.width))
        .collect::<Result<Vec<_>>>()?;
    let pairs: Vec<(usize, usize)> =
        (0..images.count).flat_map(|i| (i + 1..images.count).map(move |j| (i, j))).collect();
    let measured: Vec<[f64; 3]> = pairs
        .par_iter()
        .map(|&(i, j)| {
            let mse = mean_square_error(images.image(i), images.image(j));
            [mse.sqrt(), psnr(mse), prepared[i].ssim(&prepared[j])]
        })
        .collect();
    let mean = |k: usize| measured.iter().map(|row| row[k]).sum::<f64>() / measured.len() as f64;
    let entropy = (0..images.count).map(|i| intensity_entropy(images.image(i))).sum::<f64>() / images.count as f64;
    Ok(Diversity { rmse: mean(0), psnr: mean(1), ssim: mean(2), entropy })
}

/// Diversity averaged over prompts; one tensor u8 `[N, H, W, 3]` per prompt (N may differ).
///
/// Errors: [`Error::Shape`] for any prompt, or for no prompt at all.
pub fn mean_diversity(prompts: &[Tensor]) -> Result<Diversity> {
    if prompts.is_empty() {
        return Err(Error::Shape {
            what: "diversity",
            expected: "images of at least 1 prompt".to_owned(),
            found: "none".to_owned(),
        });
    }
    let all = prompts.iter().map(diversity).collect::<Result<Vec<_>>>()?;
    let mean = |part: fn(&Diversity) -> f64| all.iter().map(part).sum::<f64>() / all.len() as f64;
    Ok(Diversity {
        rmse: mean(|d| d.rmse),
        psnr: mean(|d| d.psnr),
        ssim: mean(|d| d.ssim),
        entropy: mean(|d| d.entropy),
    })
}

/// Mean over all bytes of the squared difference of two equally long images; exact.
fn mean_square_error(left: &[u8], right: &[u8]) -> f64 {
    let total: u64 = left.iter().zip(right).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum();
    total as f64 / left.len() as f64
}

fn psnr(mse: f64) -> f64 {
    if mse > 0.0 { (10.0 * (255.0 * 255.0 / mse).log10()).min(PSNR_CAP) } else { PSNR_CAP }
}

/// Shannon entropy, in bits, of the 256-bin histogram of grey levels; `pixels`: H·W·3 bytes RGB. 0 for no pixels.
///
/// Grey is ITU-R 601 luma rounded as Pillow's `convert("L")` does: (19595 R + 38470 G + 7471 B + 32768) / 65536.
pub fn intensity_entropy(pixels: &[u8]) -> f64 {
    let mut histogram = [0u64; 256];
    for pixel in pixels.chunks_exact(3) {
        let [red, green, blue] = [u32::from(pixel[0]), u32::from(pixel[1]), u32::from(pixel[2])];
        histogram[((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16) as usize] += 1;
    }
    let total = (pixels.len() / 3) as f64;
    let entropy: f64 = histogram
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| {
            let share = count as f64 / total;
            -share * share.log2()
        })
        .sum();
    // One full bin gives −0; a metric that prints as "-0" would puzzle people. `max` may keep either zero, a sum may not.
    entropy + 0.0
}

/// E1 and E2 of N image embeddings `[N, D]`: the von Neumann entropy and the order-2 Rényi entropy of K/N, where K
/// holds the cosine similarities. Both are 0 when all embeddings point the same way and ln N when they are orthogonal.
///
/// The sources name "E1" and "E2" without defining them; this is docs/methods.md section 5, **[our reading]**.
///
/// Errors: [`Error::Shape`] for another shape or fewer than 2 rows; [`Error::NonFinite`] for a row that is zero or not
/// finite (its cosine is undefined; `value` is the row's norm).
pub fn kernel_entropies(embeddings: &Tensor) -> Result<KernelEntropies> {
    let size = embeddings.size();
    if size.len() != 2 || size[0] < 2 || size[1] < 1 || !embeddings.is_floating_point() {
        return Err(Error::Shape {
            what: "kernel entropies",
            expected: "float [N, D] with N >= 2".to_owned(),
            found: format!("{:?} {size:?}", embeddings.kind()),
        });
    }
    let rows = embeddings.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
    let norms = rows.f_norm_scalaropt_dim(2.0, [1i64], true)?;
    let checked = Vec::<f64>::try_from(&norms.f_view([-1])?)?;
    if let Some(index) = checked.iter().position(|norm| !norm.is_finite() || *norm == 0.0) {
        return Err(Error::NonFinite { what: "kernel entropies", index, value: checked[index] });
    }
    let unit = rows.f_div(&norms)?;
    let kernel = unit.f_matmul(&unit.f_tr()?)?.f_div_scalar(size[0])?;
    let eigenvalues = Vec::<f64>::try_from(&kernel.f_linalg_eigvalsh("L")?)?;
    // Rounding leaves zero eigenvalues a hair below zero.
    let e1: f64 = eigenvalues.iter().filter(|&&x| x > 0.0).map(|x| -x * x.ln()).sum();
    let squares = kernel.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    Ok(KernelEntropies { e1: e1.max(0.0), e2: (-squares.ln()).max(0.0) })
}

/// [`kernel_entropies`] averaged over prompts; one `[N, D]` tensor per prompt. Errors: its own; no prompt at all.
pub fn mean_kernel_entropies(prompts: &[Tensor]) -> Result<KernelEntropies> {
    let all = prompts.iter().map(kernel_entropies).collect::<Result<Vec<_>>>()?;
    if all.is_empty() {
        return Err(Error::Shape {
            what: "kernel entropies",
            expected: "embeddings of at least 1 prompt".to_owned(),
            found: "none".to_owned(),
        });
    }
    let mean = |part: fn(&KernelEntropies) -> f64| all.iter().map(part).sum::<f64>() / all.len() as f64;
    Ok(KernelEntropies { e1: mean(|k| k.e1), e2: mean(|k| k.e2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: i64, side: i64) -> Tensor {
        tch::manual_seed(11);
        Tensor::randint(256, [count, side, side, 3], (Kind::Uint8, Device::Cpu))
    }

    #[test]
    fn equal_images_have_no_diversity() {
        let same = noise(1, 16).repeat([4, 1, 1, 1]);
        let found = diversity(&same).unwrap();
        assert_eq!((found.rmse, found.psnr), (0.0, PSNR_CAP));
        assert!((found.ssim - 1.0).abs() < 1e-12 && found.entropy > 6.0);
    }

    #[test]
    fn a_constant_difference_by_hand() {
        let dark = Tensor::full([1, 8, 8, 3], 100, (Kind::Uint8, Device::Cpu));
        let light = Tensor::full([1, 8, 8, 3], 110, (Kind::Uint8, Device::Cpu));
        let found = diversity(&Tensor::cat(&[dark, light], 0)).unwrap();
        assert_eq!((found.rmse, found.entropy), (10.0, 0.0));
        assert!((found.psnr - 10.0 * 650.25f64.log10()).abs() < 1e-12);
        // Flat images: the contrast factor is 1 and the luminance factor remains.
        let ssim = (2.0 * 100.0 * 110.0 + 6.5025) / (100.0f64.powi(2) + 110.0f64.powi(2) + 6.5025);
        assert!((found.ssim - ssim).abs() < 1e-12);
    }

    #[test]
    fn prompts_are_averaged() {
        let (varied, same) = (noise(3, 9), noise(1, 9).repeat([2, 1, 1, 1]));
        let (a, b) = (diversity(&varied).unwrap(), diversity(&same).unwrap());
        let both = mean_diversity(&[varied, same]).unwrap();
        assert!((both.rmse - a.rmse / 2.0).abs() < 1e-12);
        assert!((both.psnr - (a.psnr + b.psnr) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn too_few_images_are_named() {
        assert!(diversity(&noise(1, 8)).unwrap_err().to_string().contains("at least 2 images"));
        assert!(mean_diversity(&[]).is_err());
        assert!(diversity(&noise(2, 6)).unwrap_err().to_string().contains("7x7"));
        assert!(diversity(&noise(2, 8).to_kind(Kind::Float)).is_err());
    }

    #[test]
    fn entropy_of_equal_bins_is_their_log2() {
        let pixels: Vec<u8> = (0..=255u8).flat_map(|v| [v, v, v]).collect();
        assert!((intensity_entropy(&pixels) - 8.0).abs() < 1e-12);
        assert_eq!(intensity_entropy(&[3, 3, 3, 250, 250, 250]), 1.0);
        assert_eq!(intensity_entropy(&[3, 3, 3].repeat(7)).to_bits(), 0.0f64.to_bits());
        assert_eq!(intensity_entropy(&[]), 0.0);
    }

    #[test]
    fn kernel_entropies_at_their_ends() {
        let orthogonal = kernel_entropies(&Tensor::eye(5, (Kind::Float, Device::Cpu))).unwrap();
        assert!((orthogonal.e1 - 5f64.ln()).abs() < 1e-9 && (orthogonal.e2 - 5f64.ln()).abs() < 1e-9);
        let parallel =
            Tensor::from_slice(&[1.0f32, 2.0]).view([1, 2]) * Tensor::from_slice(&[1.0f32, 3.0, 0.1]).view([3, 1]);
        let parallel = kernel_entropies(&parallel).unwrap();
        assert!(parallel.e1 < 1e-6 && parallel.e2 < 1e-6, "{parallel:?}");
        // Two groups of sizes 1 and 3: λ = ¼, ¾.
        let groups = Tensor::from_slice(&[1.0f64, 0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 5.0]).view([4, 2]);
        let found = kernel_entropies(&groups).unwrap();
        assert!((found.e1 + 0.25 * 0.25f64.ln() + 0.75 * 0.75f64.ln()).abs() < 1e-9);
        assert!((found.e2 + (1.0f64 / 16.0 + 9.0 / 16.0).ln()).abs() < 1e-9);
    }

    #[test]
    fn a_zero_embedding_is_named() {
        let mut rows = Tensor::eye(3, (Kind::Float, Device::Cpu));
        let _ = rows.get(2).fill_(0.0);
        assert!(matches!(kernel_entropies(&rows), Err(Error::NonFinite { index: 2, .. })));
        rows = rows.fill_(f64::NAN);
        assert!(matches!(kernel_entropies(&rows), Err(Error::NonFinite { index: 0, .. })));
        assert!(kernel_entropies(&Tensor::zeros([1, 4], (Kind::Float, Device::Cpu))).is_err());
    }
}
