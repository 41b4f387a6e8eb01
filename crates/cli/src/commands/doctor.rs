//! `seedpo doctor`: one line for each thing a run depends on.

use std::path::{Path, PathBuf};

use anyhow::Result;
use seedpo_model::DiffusionModel;
use seedpo_tensor::speed::{LIBTORCH_VERSION, Speed};
use seedpo_tensor::{Device, Kind, Tensor, device::parse_device, memory, tch, tf32};

use crate::context::{Context, kind_name};
use crate::failure::Outcome;
use crate::{models, output};

const EXAMPLES: &str = "\
Examples:
  seedpo doctor
  seedpo doctor --model path/to/stable-diffusion-v1-5";

/// Say whether this machine is ready: one line each for libtorch, CPU, memory, GPU, speed and the model folder.
///
/// Exit code 0 if everything needed is there (warnings are advice), 2 if something needed is missing.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A diffusers folder or hub id to check: it is loaded as a run would load it [default: the built-in model].
    #[arg(long, value_name = "FOLDER|ID", visible_alias = "pretrained-model-name-or-path")]
    model: Option<PathBuf>,
}

/// One finding. `Bad` means that nothing can run.
enum Finding {
    Good(String),
    Warn(String),
    Bad(String),
}
use Finding::{Bad, Good, Warn};

type Check<'a> = Box<dyn Fn() -> Finding + 'a>;

/// Runs `seedpo doctor`.
pub fn run(args: &Args, context: &Context) -> Result<Outcome> {
    let checks: [(&str, Check); 8] = [
        ("seedpo", Box::new(|| Good(format!("{} ({})", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH)))),
        ("libtorch", Box::new(libtorch)),
        ("cpu", Box::new(cpu)),
        ("threads", Box::new(threads)),
        ("memory", Box::new(available_memory)),
        ("gpu", Box::new(gpu)),
        ("speed", Box::new(|| speed(context))),
        ("model", Box::new(|| model(args.model.as_deref(), context))),
    ];
    let mut bad = 0;
    for (name, check) in checks {
        let (mark, text) = match check() {
            Good(text) => ("ok  ", text),
            Warn(text) => ("warn", text),
            Bad(text) => {
                bad += 1;
                ("FAIL", text)
            }
        };
        output::print(&format!("{mark}  {name:<9} {text}\n"))?;
    }
    anyhow::ensure!(bad == 0, "{bad} of the checks above failed; seedpo cannot run until they pass");
    Ok(Outcome::Done)
}

fn libtorch() -> Finding {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = maps.lines().filter_map(|l| l.split_whitespace().last()).find(|p| p.ends_with("libtorch_cpu.so"));
    let sum = Tensor::from_slice(&[1.0f32, 2.0]).sum(Kind::Double).double_value(&[]);
    match path {
        _ if sum != 3.0 => Bad(format!("1 + 2 gave {sum}: this libtorch is broken; run `make setup`")),
        Some(path) => Good(format!("{LIBTORCH_VERSION}, {path}")),
        None => Good(format!("{LIBTORCH_VERSION}, linked into the binary")),
    }
}

fn cpu() -> Finding {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.starts_with(name));
        line.and_then(|l| l.split_once(':')).map_or(String::new(), |(_, v)| v.trim().to_owned())
    };
    let flags = field("flags");
    let has = |flag: &str| flags.split_whitespace().any(|f| f == flag);
    let known = [("avx2", "AVX2"), ("avx512f", "AVX-512"), ("avx512_bf16", "AVX-512 bf16"), ("amx_bf16", "AMX bf16")];
    let names: Vec<&str> = known.iter().filter(|(flag, _)| has(flag)).map(|(_, name)| *name).collect();
    let model = field("model name");
    match (flags.is_empty(), names.is_empty()) {
        (true, _) => Good(format!("{} (features unknown on this system)", std::env::consts::ARCH)),
        (_, true) => Warn(format!("{model}: no AVX2, expect a slow run")),
        _ => Good(format!("{model}: {}", names.join(", "))),
    }
}

fn threads() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (used, asked) =
        (tch::get_num_threads(), std::env::var("OMP_NUM_THREADS").unwrap_or_else(|_| "not set".to_owned()));
    let text = format!("{used} of {cores} cores (OMP_NUM_THREADS {asked})");
    if used as usize > cores { Warn(format!("{text}: more threads than cores is slower")) } else { Good(text) }
}

fn available_memory() -> Finding {
    match memory::available_bytes() as f64 / 1e9 {
        0.0 => Warn("unknown on this system".to_owned()),
        free if free < 2.0 => Warn(format!("{free:.1} GB free: enough for the built-in model only")),
        free if free < 12.0 => {
            Good(format!("{free:.1} GB free: the built-in model; Stable Diffusion 1.5 wants about 12"))
        }
        free => Good(format!("{free:.1} GB free")),
    }
}

fn gpu() -> Finding {
    match parse_device("cuda") {
        Ok(_) => {
            Good(format!("{} CUDA device(s), TF32 {}", tch::Cuda::device_count(), tf32_text(tf32::allowed())))
        }
        Err(_) => {
            Good("none that libtorch can use: the CPU computes (`python3 scripts/setup_libtorch.py --gpu --force` where there is a card)".to_owned())
        }
    }
}

/// Where f32 is computed with TF32.
fn tf32_text(allowed: tf32::Allowed) -> &'static str {
    match (allowed.products, allowed.convolutions) {
        (true, true) => "on for products and convolutions",
        (true, false) => "on for products, off for convolutions",
        (false, true) => "off for products, on for convolutions",
        (false, false) => "off",
    }
}

/// The speed of a matrix product like those of a U-Net, measured anew, and what `--dtype auto` makes of it.
fn speed(context: &Context) -> Finding {
    let device = match context.device() {
        Ok(device) => device,
        Err(error) => return Bad(format!("{error:#}")),
    };
    let speed = Speed::measure(device);
    let (kind, why) = speed.best(device);
    Good(format!(
        "{:.0} GFLOP/s in f32, {:.0} in bf16: --dtype auto is {} ({why})",
        speed.f32,
        speed.bf16,
        kind_name(kind)
    ))
}

fn model(named: Option<&Path>, context: &Context) -> Finding {
    let folder = match models::find(named, context) {
        Ok(folder) => folder,
        Err(error) if named.is_none() => return Warn(format!("{error:#}")),
        Err(error) => return Bad(format!("{error:#}")),
    };
    let load = || -> Result<DiffusionModel> { Ok(DiffusionModel::load(&folder, &context.load_options(Device::Cpu)?)?) };
    match load() {
        Ok(model) => {
            let ([height, width], channels) = models::native_size(&model);
            Good(format!("{}: loads; {height}×{width} images, {channels} latent channels", folder.display()))
        }
        Err(error) => Bad(format!("{error:#}")),
    }
}
