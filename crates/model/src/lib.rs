//! CLIP, U-Net, VAE, LoRA adapters, tokenizer and noise schedule; diffusers folders in and out.
