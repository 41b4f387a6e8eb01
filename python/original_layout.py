"""A diffusers pipeline's tensors in the key layout of the original latent-diffusion code, and back by diffusers.

For fixtures and checks: seedpo reads this layout by tables of its own (crates/model/src/single_file).
"""

import re

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0", "conv_out": "out.2"}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}


def unet_keys(config):
    """Pairs of prefixes (diffusers, original) of a U-Net's blocks, walked as the original code builds them."""
    pairs, at, layers = [], 1, config["layers_per_block"]
    levels = len(config["down_block_types"])
    for i, kind in enumerate(config["down_block_types"]):
        for j in range(layers):
            pairs.append((f"down_blocks.{i}.resnets.{j}.", f"input_blocks.{at}.0."))
            if "CrossAttn" in kind:
                pairs.append((f"down_blocks.{i}.attentions.{j}.", f"input_blocks.{at}.1."))
            at += 1
        if i < levels - 1:
            pairs.append((f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{at}.0.op."))
            at += 1
    pairs += [("mid_block.resnets.0.", "middle_block.0."), ("mid_block.attentions.0.", "middle_block.1."), ("mid_block.resnets.1.", "middle_block.2.")]
    at = 0
    for i, kind in enumerate(config["up_block_types"]):
        attention = "CrossAttn" in kind
        for j in range(layers + 1):
            pairs.append((f"up_blocks.{i}.resnets.{j}.", f"output_blocks.{at}.0."))
            if attention:
                pairs.append((f"up_blocks.{i}.attentions.{j}.", f"output_blocks.{at}.1."))
            at += 1
        if i < levels - 1:
            pairs.append((f"up_blocks.{i}.upsamplers.0.conv.", f"output_blocks.{at - 1}.{2 if attention else 1}.conv."))
    return pairs


def original_unet(state, config):
    pairs, out = unet_keys(config), {}
    for name, tensor in state.items():
        for ours, theirs in pairs:
            if name.startswith(ours):
                rest = name.removeprefix(ours)
                if ".resnets." in ours:
                    head, tail = rest.rsplit(".", 1)
                    rest = f"{RESNET[head]}.{tail}"
                out[theirs + rest] = tensor
                break
        else:
            head, tail = name.rsplit(".", 1)
            out[f"{ENDS[head]}.{tail}"] = tensor
    return {f"model.diffusion_model.{key}": tensor for key, tensor in out.items()}


def original_vae(state, levels):
    out = {}
    for name, tensor in state.items():
        key = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        key = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", key)
        key = re.sub(r"up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", key)
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = key.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample").replace(".resnets.", ".block.")
        if "mid_block.attentions" in key:
            key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm").replace("to_out.0", "proj_out")
            key = re.sub(r"to_([qkv])\.", r"\1.", key)
            if key.endswith("weight") and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        out[f"first_stage_model.{key}"] = tensor
    return out


def original_clip(state, prefix):
    """CLIP's own names, which are transformers' before version 5."""
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def original_open_clip(state, prefix, extra_layer):
    """OpenCLIP's names. `extra_layer`: the last layer that SD 2.x stores and does not use."""
    out, joined = {}, {}
    state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        if match := re.match(r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            joined.setdefault(f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}", {})[match[2]] = tensor
        elif name.startswith("encoder.layers."):
            key = name.replace("encoder.layers", "transformer.resblocks")
            for ours, theirs in OPEN_CLIP.items():
                key = key.replace(f".{ours}.", f".{theirs}.")
            out[key] = tensor
        elif name == "text_projection.weight":
            out["text_projection"] = tensor.T
        else:
            key = name.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final")
            out[key.replace("embeddings.position_embedding.weight", "positional_embedding")] = tensor
    for key, parts in joined.items():
        out[key] = torch.cat([parts[letter] for letter in "qkv"])
    if extra_layer:
        last = max(int(match[1]) for key in out if (match := re.match(r"transformer\.resblocks\.(\d+)", key)))
        copies = {key.replace(f".{last}.", f".{last + 1}."): tensor for key, tensor in out.items() if f".resblocks.{last}." in key}
        out |= copies | {"text_projection": torch.zeros_like(out["positional_embedding"][:1].expand(out["positional_embedding"].shape[1], -1))}
    out["logit_scale"] = torch.zeros(())
    return {prefix + key: tensor for key, tensor in out.items()}


def original(pipeline, family):
    """All tensors of a pipeline of `family` ("sd1", "sd2", "sdxl"), with some that no network owns."""
    unet = original_unet(pipeline.unet.state_dict(), pipeline.unet.config)
    vae = original_vae(pipeline.vae.state_dict(), len(pipeline.vae.config.block_out_channels))
    text = pipeline.text_encoder.state_dict()
    if family == "sd1":
        encoders = original_clip(text, "cond_stage_model.transformer.")
        encoders["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    elif family == "sd2":
        encoders = original_open_clip(text, "cond_stage_model.model.", extra_layer=pipeline.text_encoder.config.num_hidden_layers == 23)
    else:
        encoders = original_clip(text, "conditioner.embedders.0.transformer.")
        encoders |= original_open_clip(pipeline.text_encoder_2.state_dict(), "conditioner.embedders.1.model.", extra_layer=False)
    rest = {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000), "model_ema.decay": torch.zeros(())}
    everything = unet | vae | encoders | rest
    check(everything, pipeline, family)
    return everything


def by_diffusers(everything, pipeline, family):
    """What diffusers' own converters make of a checkpoint, by part of the pipeline; names without `text_model.`."""
    text = pipeline.text_encoder
    parts = {"unet": convert_ldm_unet_checkpoint(dict(everything), pipeline.unet.config),
             "vae": convert_ldm_vae_checkpoint(dict(everything), pipeline.vae.config)}
    if family == "sd2":
        prefix = "cond_stage_model.model."
        # Without the unused projection, whose width diffusers would take for the layers'.
        state = {key: tensor for key, tensor in everything.items() if key != prefix + "text_projection"}
        parts["text_encoder"] = convert_open_clip_checkpoint(text, state, prefix)
    else:
        parts["text_encoder"] = convert_ldm_clip_checkpoint(dict(everything))
    if family == "sdxl":
        state = dict(everything)
        prefix = "conditioner.embedders.1.model."
        # Diffusers takes the layers' width from the projection's rows, which are as many in the real model.
        parts["text_encoder_2"] = convert_open_clip_checkpoint(pipeline.text_encoder_2, state, prefix)
    return {part: plain(state) for part, state in parts.items()}


def plain(state):
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items() if "position_ids" not in name}


def check(everything, pipeline, family):
    """Diffusers' own converters give back the tensors that were put in."""
    for part, found in by_diffusers(everything, pipeline, family).items():
        state = plain(getattr(pipeline, part).state_dict())
        assert found.keys() == state.keys(), (part, found.keys() ^ state.keys())
        same = lambda a, b: a.shape == b.shape and (a.is_meta or b.is_meta or torch.equal(a, b))
        wrong = [name for name in state if not same(found[name], state[name])]
        assert not wrong, (part, wrong)
