"""LoRAs of all kinds of layers between seedpo and diffusers, for interop_formats.py.

Attention, feed-forward, `proj_in` and `proj_out`, time embedding, 1x1 and 3x3 convolutions and text encoders, in the layouts
of diffusers (both spellings), peft and kohya (both block names), there and back, merged, and as `seedpo train` makes them.
"""

import json

import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from interop_common import FORWARD, Inputs, Seedpo, load_pipeline, off, record
from original_layout import original_unet

RANK, ALPHA = 2, 3.0
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
ALL_LINEAR = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
# Two updates large enough to be seen; rank and alpha differ, so that the scale is put to the test.
TRAIN = """--method spo --judge colourfulness --threshold 0 --prompts red,blue --prompts-per-iteration 2 --steps 4
    --divert-start-step 1 --train-batch-size 4 --rank 4 --lora-alpha 8 --learning-rate 0.01 --max-train-steps 2
    --validation-steps 0 --lora-targets all-linear""".split()


def networks(pipeline):
    found = {name: getattr(pipeline, name, None) for name in PREFIXES}
    return {name: network for name, network in found.items() if network is not None}


def layers_of(network, leave_out=()):
    wanted = [n for n, m in network.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    return [n for n in wanted if not any(part in n for part in leave_out)]


def attach(network, targets, seed=5, **more):
    """A random adapter made by PEFT, left attached."""
    torch.manual_seed(seed)
    network.add_adapter(LoraConfig(**dict(r=RANK, lora_alpha=ALPHA, init_lora_weights="gaussian", target_modules=targets) | more))
    for key, value in network.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.05)
    return get_peft_model_state_dict(network)


def load(pipeline, path, **options):
    """`load_lora_weights` for files as hubs have them. transformers 5's CLIPTextModel calls its layers `encoder.layers..`, and
    diffusers 0.38 fails on files that say `text_encoder.text_model.encoder.layers..`; so that prefix is taken off here."""
    bare = lambda key: key.replace("text_encoder.text_model.", "text_encoder.")

    def lora_state_dict(*arguments, **more):
        found = type(pipeline).lora_state_dict(*arguments, **more)
        parts = list(found) if isinstance(found, tuple) else [found]
        parts[:2] = [part and {bare(key): value for key, value in part.items()} for part in parts[:2]]
        for key, value in (parts[2] or {}).items() if len(parts) > 2 else ():
            if key.startswith("text_encoder."):
                parts[2][key] = json.loads(json.dumps(value).replace("text_model.", ""))
        return tuple(parts) if isinstance(found, tuple) else parts[0]

    pipeline.lora_state_dict = lora_state_dict
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, **options)
    finally:
        del pipeline.lora_state_dict


def results(pipeline, x):
    """What pipeline and adapter make of the inputs: prediction, prompt embeddings, pooled ones."""
    with torch.no_grad():
        prompts = Inputs(pipeline)
        return [x.unet(pipeline)(x.latents, x.timestep, x.embeds).sample, prompts.embeds] + ([prompts.added["pooled"]] if x.added else [])


def ours(seedpo, model, x, adapter=None):
    """The same by seedpo."""
    settings = {"adapter": str(adapter)} if adapter else {}
    noise = seedpo.probe(model, "unet", settings, latents=x.latents, timestep=x.timestep, **x.prompt)["noise_pred"]
    text = seedpo.probe(model, "text", settings, **x.ids)
    return [noise, text["prompt_embeds"]] + ([text["pooled"]] if x.added else [])


def compare(name, label, found, expected, base=None):
    """One row: the largest difference of all results; none of them may be the base's where that is given."""
    still = base is not None and any(off(one, other) < 1e-3 for one, other in zip(expected, base))
    worst = None if still else max(off(one, other) for one, other in zip(found, expected, strict=True))
    record(name, label, worst, FORWARD, "the adapter moves nothing" if still else "")


def loaded(pipeline, path, x):
    load(pipeline, path)
    found = results(pipeline, x)
    pipeline.unload_lora_weights()
    return found


def kohya(states, pipeline, path, original):
    """The layout of sd-scripts, with diffusers' block names or the original ones."""
    prefixes = PREFIXES | ({"text_encoder": "lora_te1"} if "text_encoder_2" in states else {})
    out = {}
    for network, state in states.items():
        for key, tensor in state.items():
            module, half = key.removesuffix(".weight").rsplit(".lora_", 1)
            if network != "unet" and not module.startswith(("text_model.", "text_projection")):
                module = f"text_model.{module}"
            if network == "unet" and original:
                (module,) = original_unet({f"{module}.weight": tensor}, pipeline.unet.config)
                module = module.removeprefix("model.diffusion_model.").removesuffix(".weight")
            stem = f"{prefixes[network]}_{module.replace('.', '_')}"
            out[f"{stem}.lora_{'down' if half == 'A' else 'up'}.weight"] = tensor.contiguous()
            out[f"{stem}.alpha"] = torch.tensor(ALPHA, dtype=torch.float16)
    save_file(out, path, metadata={"ss_network_dim": str(RANK), "ss_network_alpha": str(ALPHA)})
    return path


def save_diffusers(pipeline, states, path, **metadata):
    arguments = {f"{'unet' if name == 'unet' else name}_lora_layers": state for name, state in states.items()}
    type(pipeline).save_lora_weights(path.parent, weight_name=path.name, **arguments, **metadata)
    return path


def check_diffusers(seedpo, name, folder, pipeline, x, place, base):
    """Every layer of every network, with ranks and alphas of their own; and without metadata, in the older spelling."""
    states, collected = {}, {}
    for part, network in networks(pipeline).items():
        names = layers_of(network)
        patterns = dict(rank_pattern={names[1]: 3, names[-1]: 1}, alpha_pattern={names[2]: 5})
        states[part] = attach(network, names, **patterns)
        collected |= _collate_lora_metadata({part: network})
    expected = results(pipeline, x)
    pipeline.unload_lora_weights()
    path = save_diffusers(pipeline, states, place / "whole.safetensors", **collected)
    compare(name, "diffusers file, all layers: theirs", loaded(pipeline, path, x), expected, base)
    compare(name, "diffusers file, all layers", ours(seedpo, folder, x, path), expected, base)
    converted = place / "whole-again.safetensors"
    seedpo.run("adapter", "convert", path, converted, "--to", "diffusers")
    compare(name, "diffusers file, all layers, written by us", loaded(pipeline, converted, x), expected, base)

    # What diffusers' training scripts write; of this mixture its own loader reads only some layers. No alpha: scale 1.
    states = {part: attach(network, layers_of(network), lora_alpha=RANK) for part, network in networks(pipeline).items()}
    expected = results(pipeline, x)
    pipeline.unload_lora_weights()
    path = place / "down-up.safetensors"
    save_diffusers(pipeline, {part: convert_state_dict_to_diffusers(state) for part, state in states.items()}, path)
    compare(name, "diffusers file, lora.down/up", ours(seedpo, folder, x, path), expected, base)


def check_kohya(seedpo, name, folder, pipeline, x, place, base):
    """What trainers for A1111 write: LoCon and both text encoders. diffusers cannot read the time embedding's layers."""
    states = {part: attach(network, layers_of(network, ["embedding", "conv_in", "conv_out"])) for part, network in networks(pipeline).items()}
    expected = results(pipeline, x)
    pipeline.unload_lora_weights()
    # Original block numbers mean nothing without the U-Net of one residual block a level, so only the others are converted.
    for original in (True, False):
        label = "original" if original else "diffusers'"
        path = kohya(states, pipeline, place / f"kohya-{label[:8]}.safetensors", original)
        compare(name, f"kohya file, {label} block names", ours(seedpo, folder, x, path), expected, base)
    compare(name, "kohya file: theirs", loaded(pipeline, path, x), expected, base)
    converted, back = place / "kohya-converted.safetensors", place / "kohya-back.safetensors"
    seedpo.run("adapter", "convert", path, converted, "--to", "diffusers")
    compare(name, "kohya file, to diffusers", loaded(pipeline, converted, x), expected, base)
    seedpo.run("adapter", "convert", converted, back, "--to", "kohya")
    compare(name, "kohya file, to diffusers and back", loaded(pipeline, back, x), expected, base)
    text = seedpo.run("adapter", "inspect", path)
    record(name, "adapter inspect names the text encoder", 0 if "text_encoder" in text and "conv1" in text else 1, 0)


def check_peft(seedpo, name, folder, x, place):
    """peft's own folder of a U-Net, with patterns in its adapter_config.json."""
    torch.manual_seed(3)
    pipeline = load_pipeline(folder)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=ALL_LINEAR + ["conv1", "time_emb_proj"], use_rslora=True,
                          rank_pattern={"ff.net.2": 3}, alpha_pattern={"proj_in": 5, "conv1": 1})
    model = get_peft_model(pipeline.unet, settings)
    for key, value in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.05)
    model.save_pretrained(place / "peft")
    compare(name, "peft folder", ours(seedpo, folder, x, place / "peft")[:1], results(pipeline, x)[:1])


def check_merged(seedpo, name, folder, pipeline, x, place, base):
    """Two files in the weights of a model folder, each times its weight."""
    first, second = place / "whole.safetensors", place / "kohya-converted.safetensors"
    merged = place / "merged"
    seedpo.run("adapter", "merge", "--model", folder, f"{first}:0.7", f"{second}:-0.4", merged)
    one = place / "one.safetensors"
    seedpo.run("adapter", "merge", f"{first}:0.7", f"{second}:-0.4", one)
    load(pipeline, first, adapter_name="first")
    load(pipeline, second, adapter_name="second")
    pipeline.set_adapters(["first", "second"], [0.7, -0.4])
    expected = results(pipeline, x)
    pipeline.unload_lora_weights()
    compare(name, "two files merged into a folder", results(load_pipeline(merged), x), expected, base)
    compare(name, "two files merged into a file", ours(seedpo, folder, x, one), expected, base)
    compare(name, "two files merged into a file: theirs", loaded(pipeline, one, x), expected, base)


def check_trained(seedpo, name, folder, pipeline, x, scratch, base):
    """An adapter that `seedpo train --lora-targets all-linear` wrote, in both layouts."""
    run = scratch / f"{name}-all-linear"
    seedpo.run("train", "--model", folder, "--output-dir", scratch, "--name", run.name, *TRAIN)
    expected = ours(seedpo, folder, x, run)
    for label, path in [("diffusers", run / "pytorch_lora_weights.safetensors"), ("kohya", run / "pytorch_lora_weights_kohya.safetensors")]:
        compare(name, f"trained with all-linear, {label} file", loaded(pipeline, path, x)[:1], expected[:1], base[:1])


def check_dora(seedpo, name, folder, pipeline, x, place):
    """DoRA is refused by name."""
    path = save_diffusers(pipeline, {"unet": attach(pipeline.unet, ["to_q"], use_dora=True)}, place / "dora.safetensors")
    pipeline.unload_lora_weights()
    try:
        ours(seedpo, folder, x, path)
        record(name, "DoRA is refused", 1, 0)
    except RuntimeError as error:
        record(name, "DoRA is refused", 0 if "DoRA is not supported" in str(error) else 1, 0)


def check_layers(binary, scratch, name, folder, x):
    """All of it for one pipeline."""
    seedpo, place, pipeline = Seedpo(binary, scratch), scratch / f"{name}-layers", load_pipeline(folder)
    place.mkdir()
    base = results(pipeline, x)
    check_diffusers(seedpo, name, folder, pipeline, x, place, base)
    check_kohya(seedpo, name, folder, pipeline, x, place, base)
    check_peft(seedpo, name, folder, x, place)
    check_merged(seedpo, name, folder, pipeline, x, place, base)
    check_trained(seedpo, name, folder, pipeline, x, scratch, base)
    check_dora(seedpo, name, folder, pipeline, x, place)
