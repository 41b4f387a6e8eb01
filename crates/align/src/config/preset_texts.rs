//! The settings of the presets as TOML text, in layers.

/// D3PO's published settings: 400 epochs of 20 prompts, one pair per update.
pub const D3PO_SD15: &str = r#"
method = "d3po"
beta = 0.1
clip = 0.1
learning_rate = 3e-5
prompts_per_iteration = 20
rollout_batch_size = 10
train_batch_size = 1
max_train_steps = 8000
resolution = 512
judge = "jpeg-compressibility"
checkpointing_steps = 400
validation_steps = 400
"#;

/// SPO's published settings for Stable Diffusion 1.5, with a judge of this version in the step model's place.
pub const SPO_SD15: &str = r#"
method = "spo"
beta = 10.0
clip = 0.1
learning_rate = 6e-5
rank = 4
candidates = 4
divert_start_step = 4
threshold = 0.3
prompts_per_iteration = 10
rollout_batch_size = 10
train_batch_size = 10
num_train_epochs = 10
resolution = 512
checkpointing_steps = 500
validation_steps = 500
"#;

/// Diffusion-DPO's published settings: effective batch 2048, lr 1e-8 times the batch ("scale_lr").
pub const DIFFUSION_DPO_SD15: &str = r#"
method = "diffusion-dpo"
beta = 5000.0
guidance_scale = 1.0
sampling_guidance_scale = 7.5
learning_rate = 2.048e-5
clip = 0.0
adam_weight_decay = 1e-2
lr_scheduler = "constant_with_warmup"
lr_warmup_steps = 500
max_train_steps = 2000
prompts_per_iteration = 2048
train_batch_size = 8
gradient_accumulation_steps = 256
resolution = 512
checkpointing_steps = 200
validation_steps = 200
"#;

/// What SPO's published settings for SDXL base change.
pub const SPO_SDXL: &str = r#"
learning_rate = 1e-5
rank = 64
threshold = 0.4
candidates = 2
prompts_per_iteration = 2
rollout_batch_size = 2
train_batch_size = 2
gradient_accumulation_steps = 2
resolution = 1024
"#;

pub const SEE: &str = "entropy = { gamma = 1.0 }\n";

/// Small and quick: for the built-in 64x64 model on two CPU cores, one to three minutes a run. In f32, so that runs
/// differ as little as may be between machines.
pub const EMOJI: &str = r#"
model = "assets/emoji-sd"
dtype = "f32"
prompts = ["cat face", "red apple", "heart", "fish", "tree", "car", "bird", "moon", "dog face", "house", "flower", "sun"]
judge = "colourfulness"
heldout_judge = "jpeg-compressibility"
steps = 10
learning_rate = 3e-3
prompts_per_iteration = 12
rollout_batch_size = 12
max_train_steps = 100
checkpointing_steps = 20
validation_steps = 20
"#;

/// β is ten times the published one: with it the loss, and not the clip alone, keeps the policy near its reference, and
/// γ shows (measured on the built-in model: at β = 10 the clip ends the climb, at 100 it cuts 2 % of the ratios).
pub const EMOJI_SPO: &str = r#"
method = "spo"
beta = 100.0
candidates = 4
divert_start_step = 2
threshold = 0.3
train_batch_size = 24
"#;

/// All twelve pairs in one update: with four, at a fifth of the learning rate, a hundred updates moved nothing.
pub const EMOJI_D3PO: &str = r#"
method = "d3po"
beta = 1.0
learning_rate = 5e-3
train_batch_size = 12
train_micro_batch_size = 24
max_train_steps = 60
"#;

/// DDPO's published settings: 100 epochs of 256 samples, four updates of 64 each, over 50 steps.
pub const DDPO_SD15: &str = r#"
method = "ddpo"
clip = 1e-4
advantage_clip = 5.0
reward_history = 16
reward_history_min = 16
learning_rate = 1e-4
adam_weight_decay = 1e-4
steps = 50
guidance_scale = 5.0
prompts_per_iteration = 256
rollout_batch_size = 8
train_batch_size = 4
gradient_accumulation_steps = 16
max_train_steps = 400
resolution = 512
judge = "jpeg-compressibility"
checkpointing_steps = 20
validation_steps = 20
"#;

/// What DPOK's published settings change.
pub const DPOK_SD15: &str = r#"
method = "dpok"
kl_weight = 0.01
learning_rate = 1e-5
max_grad_norm = 0.1
"#;

/// Fewer rewards a prompt before its own mean counts: a hundred updates see each prompt a hundred times, not thousands.
pub const EMOJI_DDPO: &str = r#"
method = "ddpo"
clip = 1e-4
learning_rate = 5e-3
prompts_per_iteration = 24
train_batch_size = 12
train_micro_batch_size = 24
reward_history_min = 4
"#;
/// What Diffusion-DPO's published settings for SDXL base change.
pub const DIFFUSION_DPO_SDXL: &str = r#"
optimizer = "adafactor"
lr_warmup_steps = 200
train_batch_size = 2
gradient_accumulation_steps = 1024
sampling_guidance_scale = 5.0
resolution = 1024
"#;

/// The settings of diffusers' LoRA script: rank 8 at a constant learning rate, 32 pairs per update.
pub const DIFFUSION_DPO_LORA: &str = r#"
method = "diffusion-dpo"
beta = 2500.0
learning_rate = 1e-5
clip = 0.0
guidance_scale = 1.0
sampling_guidance_scale = 7.5
adam_weight_decay = 1e-2
rank = 8
prompts_per_iteration = 32
train_batch_size = 16
gradient_accumulation_steps = 2
max_train_steps = 10000
resolution = 512
checkpointing_steps = 200
validation_steps = 200
"#;

/// Every parameter of the U-Net.
pub const FULL: &str = "finetuning_type = \"full\"\n";

/// An adapter in the place of full fine-tuning.
pub const LORA_8: &str = "rank = 8\n";

/// Diffusion-DPO's rule, 1e-8 times the batch, at SePPO's batch of 32.
pub const SEPPO_FULL: &str = "finetuning_type = \"full\"\nlearning_rate = 3.2e-7\n";

/// SePPO as its paper describes it: a snapshot every 30 updates, one drawn at random per update, the sign flipper; the
/// rest, which it has no public code for, as Diffusion-DPO's LoRA script.
pub const SEPPO_SD15: &str = r#"
method = "seppo"
reference = "random-history"
reference_save_steps = 30
flipper = "sign"
beta = 5000.0
learning_rate = 1e-5
clip = 0.0
guidance_scale = 1.0
sampling_guidance_scale = 7.5
steps = 20
adam_weight_decay = 1e-2
prompts_per_iteration = 32
rollout_batch_size = 16
train_batch_size = 16
gradient_accumulation_steps = 2
max_train_steps = 2000
resolution = 512
checkpointing_steps = 60
validation_steps = 120
"#;

/// With γ above 0 the constants of both sides add up where s = −1: β has to be far smaller.
pub const SEE_SEPPO: &str = "entropy = { gamma = 1.0 }\nbeta = 50.0\n";

/// SPIN-Diffusion's published settings: three rounds of 500 updates of 2048 winners, each against the policy of the round
/// before.
pub const SPIN_SD15: &str = r#"
method = "spin"
reference = "latest"
reference_save_steps = 500
beta = 5000.0
learning_rate = 2e-5
clip = 0.0
guidance_scale = 1.0
sampling_guidance_scale = 7.5
steps = 20
adam_weight_decay = 1e-2
lr_scheduler = "linear"
lr_warmup_steps = 200
prompts_per_iteration = 2048
rollout_batch_size = 16
train_batch_size = 8
gradient_accumulation_steps = 256
max_train_steps = 1500
resolution = 512
checkpointing_steps = 100
validation_steps = 100
"#;

/// What `train_method = sft` of Diffusion-DPO's public code changes.
pub const SFT_SD15: &str = "method = \"sft\"\n";

/// Supervision of an adapter, with the batch of diffusers' LoRA script.
pub const SFT_LORA_SD15: &str = r#"
method = "sft"
learning_rate = 1e-5
clip = 0.0
guidance_scale = 1.0
sampling_guidance_scale = 7.5
adam_weight_decay = 1e-2
rank = 8
prompts_per_iteration = 32
train_batch_size = 16
gradient_accumulation_steps = 2
max_train_steps = 10000
resolution = 512
checkpointing_steps = 200
validation_steps = 200
"#;

/// What the methods that read image files share on the built-in model.
pub const EMOJI_FILES: &str = r#"
rank = 4
gradient_accumulation_steps = 1
prompts = []
validation_prompts = ["cat face", "red apple", "heart", "fish", "tree", "car", "bird", "moon", "dog face", "house", "flower", "sun"]
validation_images_per_prompt = 2
max_train_steps = 60
guidance_scale = 1.0
sampling_guidance_scale = 5.0
clip = 0.0
adam_weight_decay = 1e-4
prompts_per_iteration = 16
train_batch_size = 16
learning_rate = 2e-3
beta = 2000.0
"#;

pub const EMOJI_DIFFUSION_DPO: &str = "method = \"diffusion-dpo\"\nlearning_rate = 3e-3\n";

pub const EMOJI_SEPPO: &str = r#"
method = "seppo"
reference = "random-history"
reference_save_steps = 10
flipper = "sign"
"#;

/// See [`SEE_SEPPO`].
pub const EMOJI_SEE_SEPPO: &str = "beta = 20.0\n";

/// With γ above 0 the reference's own preference enters the margin, which at a tenth of β does not saturate the loss.
pub const EMOJI_SEE_FILES: &str = "beta = 200.0\n";

pub const EMOJI_SPIN: &str = "method = \"spin\"\nreference = \"latest\"\nreference_save_steps = 25\n";

pub const EMOJI_SFT: &str = "method = \"sft\"\n";

/// At γ = 2 the reward rises faster still, but after 120 updates the cats have lost their faces.
pub const SEE_EMOJI: &str = "entropy = { gamma = 0.5 }\n";
