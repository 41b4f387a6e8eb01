//! The client against a stand-in hub that misbehaves on demand.

mod downloads;
mod refusals;
mod stand_in;

use std::path::PathBuf;
use std::time::Duration;

use seedpo_hub::{Hub, HubConfig, Observer, RepoId, Result, Select, Token};
use stand_in::StandIn;

/// Keeps what it is told.
#[derive(Default)]
struct Notes {
    lines: Vec<String>,
    last: (u64, u64),
}

impl Observer for Notes {
    fn progress(&mut self, _file: &str, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
        self.last = (done, total);
    }

    fn note(&mut self, text: &str) {
        self.lines.push(text.to_owned());
    }
}

/// A stand-in with a tiny pipeline, and an empty cache.
struct Room {
    server: StandIn,
    cache: tempfile::TempDir,
    config: HubConfig,
}

fn unet() -> Vec<u8> {
    (0..600_000u32).map(|i| (i * 7 + i / 251) as u8).collect()
}

impl Room {
    fn new() -> Self {
        let (server, cache) = (StandIn::new(), tempfile::tempdir().unwrap());
        let index = r#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": ["stable_diffusion", "Checker"]}"#;
        server.add("model_index.json", index.as_bytes(), false);
        server.add("README.md", b"not needed", false);
        server.add("scheduler/scheduler_config.json", b"{}", false);
        server.add("unet/config.json", b"{\"a\": 1}", false);
        server.add("unet/diffusion_pytorch_model.safetensors", &unet(), true);
        server.add("unet/diffusion_pytorch_model.fp16.safetensors", &unet()[..1000], true);
        server.add("unet/diffusion_pytorch_model.bin", b"pickle", true);
        server.add("safety_checker/model.safetensors", b"not needed", true);
        let config = HubConfig {
            endpoint: server.endpoint.clone(),
            cache: cache.path().to_path_buf(),
            token: None,
            offline: false,
            tries: 3,
            pause: Duration::from_millis(1),
        };
        Self { server, cache, config }
    }

    fn with_token(mut self) -> Self {
        self.config.token = Some(Token { secret: "secret".to_owned(), source: "HF_TOKEN".to_owned() });
        self
    }

    fn offline(mut self) -> Self {
        self.config.offline = true;
        self
    }

    fn get(&self, select: &Select) -> (Result<PathBuf>, Notes) {
        let mut notes = Notes::default();
        let id = RepoId::parse("tiny/model").unwrap();
        (Hub::new(self.config.clone()).snapshot(&id, "main", select, &mut notes), notes)
    }

    fn pipeline(&self, variant: Option<&str>) -> Result<PathBuf> {
        self.get(&Select::Pipeline { variant: variant.map(str::to_owned) }).0
    }

    fn error(&self, select: &Select) -> String {
        self.get(select).0.unwrap_err().to_string()
    }

    /// Files in the cache whose names end with `suffix`.
    fn left(&self, suffix: &str) -> usize {
        let blobs = self.cache.path().join("models--tiny--model/blobs");
        let names = std::fs::read_dir(blobs).into_iter().flatten().flatten().map(|e| e.file_name());
        names.filter(|name| name.to_string_lossy().ends_with(suffix)).count()
    }
}

fn plain() -> Select {
    Select::Pipeline { variant: None }
}
