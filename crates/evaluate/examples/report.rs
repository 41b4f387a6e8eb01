//! Draws a report and an event file from made-up curves and images: to look at the layout, not at results.
//!
//!     cargo run -p seedpo-evaluate --example report -- target/example-report

use seedpo_evaluate::report::{
    Aligned, GridImage, GridRow, Headline, ImageGrid, JudgeLabel, ReportData, RunSeries, SettingsGroup,
    diffusers_snippet, write_report,
};
use seedpo_evaluate::tensorboard::EventWriter;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A wobble in [−1, 1] that looks random and is not.
fn wobble(step: f64, seed: f64) -> f64 {
    ((step * 12.9898 + seed * 78.233).sin() * 43758.5453).fract()
}

fn run(name: &str, gamma: f64) -> RunSeries {
    let mut run = RunSeries { name: name.to_owned(), ..RunSeries::default() };
    for step in 1..=120 {
        let x = f64::from(step);
        let progress = 1.0 - (-x / (40.0 + 15.0 * gamma)).exp();
        run.push("update.loss", x, 0.693 - 0.25 * progress + 0.05 * wobble(x, gamma));
        run.push("update.margin", x, 0.03 * progress + 0.008 * wobble(x, gamma + 1.0));
        run.push("update.implicit_accuracy", x, 0.5 + 0.35 * progress + 0.06 * wobble(x, gamma + 2.0));
        run.push("update.grad_norm", x, 0.8 + 0.5 * wobble(x, gamma + 3.0).abs());
        run.push("update.kl_to_reference", x, 0.02 * progress.powi(2) / (1.0 + gamma));
        run.push("update.clip_fraction", x, if step == 60 { f64::NAN } else { 0.2 * progress });
        run.push("update.reward_mean", x, -3.4 + 1.2 * progress + 0.15 * wobble(x, gamma + 4.0));
        run.push("update.seconds_train", x, 1.4 + 0.1 * wobble(x, 5.0));
        if step % 15 == 0 || step == 1 {
            let at = if step == 1 { 0.0 } else { x };
            let progress = if step == 1 { 0.0 } else { progress };
            run.push("preview.reward_mean", at, -3.41 + 1.3 * progress);
            run.push("preview.heldout_mean", at, 41.0 - (9.0 - 6.0 * gamma) * progress);
            run.push("preview.measured.rmse", at, 71.0 - (23.0 - 17.0 * gamma) * progress);
            run.push("preview.measured.ssim", at, 0.31 + (0.2 - 0.15 * gamma) * progress);
            run.push("preview.measured.psnr", at, 11.2 + (4.0 - 3.0 * gamma) * progress);
            run.push("preview.measured.entropy", at, 4.1 - (1.5 - 1.1 * gamma) * progress);
        }
    }
    run
}

/// A coloured disc on white, 64×64.
fn disc(seed: f64, flatness: f64) -> Tensor {
    let pixels: Vec<u8> = (0..64 * 64)
        .flat_map(|i| {
            let (y, x) = (f64::from(i / 64) - 32.0, f64::from(i % 64) - 32.0 + 6.0 * wobble(seed, 1.0));
            let inside = x.hypot(y) < 20.0 + 6.0 * wobble(seed, 2.0);
            let texture = (1.0 - flatness) * 40.0 * wobble(f64::from(i), seed);
            let colour =
                |c: f64| if inside { 140.0 + 100.0 * wobble(seed, 3.0 + c) + texture } else { 252.0 + texture / 10.0 };
            [colour(0.0), colour(1.0), colour(2.0)].map(|value| value.clamp(0.0, 255.0) as u8)
        })
        .collect();
    Tensor::from_slice(&pixels).view([64, 64, 3])
}

fn grid() -> Result<ImageGrid> {
    let columns = ["Before", "After SEE-SPO, γ = 1", "After SPO, γ = 0"];
    let mut rows = Vec::new();
    for (index, prompt) in
        ["red apple", "smiling face with <sunglasses>", "flag: Portugal", "🦊 fox"].iter().enumerate()
    {
        let cells = (0..3)
            .map(|column| {
                (0..2)
                    .map(|seed| {
                        let image = disc((index * 7 + seed) as f64, f64::from(column) / 2.0);
                        GridImage::from_tensor(&image, format!("−{}.{seed} kB", 3 - column))
                    })
                    .collect::<std::result::Result<Vec<_>, _>>()
            })
            .collect::<std::result::Result<Vec<_>, _>>()?;
        rows.push(GridRow { prompt: (*prompt).to_owned(), cells });
    }
    Ok(ImageGrid {
        title: "Before and after".to_owned(),
        note: "Same prompt, same starting noise in every column. Under each image its score.".to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        rows,
    })
}

fn settings() -> Vec<SettingsGroup> {
    let group = |title: &str, rows: &[(&str, &str)]| SettingsGroup {
        title: title.to_owned(),
        rows: rows.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    vec![
        group(
            "Objective",
            &[("method", "spo"), ("beta", "10"), ("gamma", "1"), ("kappa = 1/(1+γ)", "0.5"), ("clip", "0.1")],
        ),
        group("Optimizer", &[("learning_rate", "3e-4"), ("batch", "10"), ("max_grad_norm", "1.0"), ("updates", "120")]),
        group("Rollout", &[("steps", "20"), ("eta", "1"), ("guidance_scale", "5"), ("candidates", "4")]),
    ]
}

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "report-example".to_owned()));
    std::fs::create_dir_all(&folder)?;
    let runs = vec![run("SEE-SPO, γ = 1", 1.0), run("SPO, γ = 0", 0.0)];
    let mut events = EventWriter::create(&folder)?;
    for (step, value) in runs[0].points("update.loss") {
        events.scalars(*step as i64, &[("train/loss", *value), ("train/step", *step)])?;
    }
    events.image(120, "samples", &disc(4.0, 0.5))?;
    events.text(0, "settings", "| key | value |\n| --- | --- |\n| γ | 1 |")?;
    let large = Tensor::full([96, 200, 3], 90, (Kind::Uint8, Device::Cpu));
    events.image(60, "large", &large)?;
    let label = |name: &str, unit: &str| JudgeLabel { name: name.to_owned(), unit: unit.to_owned() };
    let data = ReportData {
        title: "SEE-SPO on emoji-sd (made-up data)".to_owned(),
        summary: String::new(),
        facts: vec![
            "2026-11-21 10:04 UTC".to_owned(),
            "runs/see-spo".to_owned(),
            "seed 42".to_owned(),
            "4 min 12 s".to_owned(),
        ],
        reward: label("jpeg-compressibility", "kB"),
        heldout: Some(label("colourfulness", "M")),
        runs,
        headlines: vec![Headline {
            label: "Win rate over the base model".to_owned(),
            value: "91 %".to_owned(),
            detail: "95 % interval 83 to 95 %, 64 images".to_owned(),
        }],
        grids: vec![grid()?],
        command: Some(
            "seedpo train --preset see-spo-emoji --judge jpeg-compressibility --gamma 1 --seed 42".to_owned(),
        ),
        settings: settings(),
        snippet: Some(diffusers_snippet("assets/emoji-sd", Aligned::Adapter("runs/see-spo"), "red apple", 5.0, 20)),
        environment: vec![
            ("seedpo".to_owned(), "0.1.0".to_owned()),
            ("libtorch".to_owned(), "2.11.0 (CPU, 2 threads)".to_owned()),
        ],
    };
    write_report(&folder.join("report.html"), &data)?;
    println!("{}\n{}", folder.join("report.html").display(), events.path().display());
    Ok(())
}
