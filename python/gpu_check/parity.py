"""Stages of the model on the device against the CPU in f32, through `seedpo probe`."""

import json
import math
import random

from benchmark.process import Failed, run
from benchmark.tensors import normal, read_f32, read_header, write, write_adapter
from gpu_check.parts import Result

PROMPTS = ["red apple", "a bicycle in the rain"]
TIMESTEPS = [801, 41]
# Relative error ‖device − CPU‖ / ‖CPU‖ that is allowed: of one pass, and of what lies many passes away from its inputs.
ONE_PASS, MANY_PASSES = "one pass", "many passes"
LIMITS = {"f32": {ONE_PASS: 1e-4, MANY_PASSES: 1e-3}, "bf16": {ONE_PASS: 3e-2, MANY_PASSES: 1.5e-1}}
# Differences of nearly equal numbers, which bf16 does not keep; f32 does.
CANCELLING = ("margin", "loss")


def probe(scene, model, case, device, dtype):
    """Results of one case: {name: (shape, values)}."""
    out = scene.place.scratch / "out.safetensors"
    out.unlink(missing_ok=True)
    # TF32 rounds an f32 product's factors to ten bits.
    environment = scene.place.environment | ({"NVIDIA_TF32_OVERRIDE": "0"} if dtype == "f32" else {})
    command = [scene.place.seedpo, "probe", "--quiet", "--model", model, "--case", case, "--out", out, "--device", device,
               "--dtype", dtype, "--threads", scene.place.threads]
    run(command, scene.place.scratch / "probe.log", environment)
    return read_f32(out)


def relative_error(found, expected):
    """‖found − expected‖ / ‖expected‖ over all values of both lists of tensors."""
    pairs = [(a, b) for one, other in zip(found, expected) for a, b in zip(one[1], other[1], strict=True)]
    difference = math.sqrt(sum((a - b) ** 2 for a, b in pairs))
    norm = math.sqrt(sum(b**2 for _, b in pairs))
    return difference / norm if norm > 0 else difference


def input_ids(scene, model, folder):
    """The token ids of the prompts, as inputs of the text stage."""
    case, out = folder / "tokenize.safetensors", folder / "ids.safetensors"
    write(case, {}, {"what": "tokenize", "settings": json.dumps({"prompts": PROMPTS})})
    run([scene.place.seedpo, "probe", "--quiet", "--model", model, "--case", case, "--out", out, "--device", "cpu"],
        folder / "probe.log", scene.place.environment)
    header, start = read_header(out)
    data, tensors = out.read_bytes(), {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["shape"], list(memoryview(data[start + begin:start + end]).cast("q")))
    return tensors


class Cases:
    """The inputs of a model folder's stages; each case is (name, limit's name, file)."""

    def __init__(self, scene, model, adapter):
        self.scene, self.model, self.adapter = scene, model, adapter
        self.unet = json.loads((model / "unet/config.json").read_text())
        vae = json.loads((model / "vae/config.json").read_text())
        side = self.unet["sample_size"]
        self.latents = normal([len(PROMPTS), self.unet["in_channels"], side, side])
        self.pixels = side * 2 ** (len(vae["block_out_channels"]) - 1)

    def case(self, what, tensors, settings=None, limit=ONE_PASS, name=None):
        path = self.scene.place.scratch / f"{self.model.name}-{name or what}.safetensors"
        write(path, tensors, {"what": what, "settings": json.dumps(settings or {})})
        return name or what, limit, path

    def on_cpu(self, case):
        return probe(self.scene, self.model, case[2], "cpu", "f32")

    def all(self):
        """Every stage that the folder's family has here; what one gives on the CPU goes into those after it."""
        text = self.case("text", input_ids(self.scene, self.model, self.scene.place.scratch))
        yield text
        embedded = self.on_cpu(text)
        prompt = {"prompt_embeds": embedded["prompt_embeds"], "timestep": ([2], TIMESTEPS)}
        added = {}
        if self.unet.get("addition_embed_type"):
            size = [float(self.pixels), float(self.pixels), 0.0, 0.0, float(self.pixels), float(self.pixels)]
            added = {"pooled": embedded["pooled"], "time_ids": ([2, 6], size * 2)}
        unet = self.case("unet", {"latents": self.latents} | prompt | added)
        yield unet
        generator, shape = random.Random(5), [1, 3, self.pixels, self.pixels]
        yield self.case("encode", {"images": (shape, [generator.uniform(-1, 1) for _ in range(3 * self.pixels**2)])})
        yield self.case("decode", {"latents": normal([1, *self.latents[0][1:]], seed=6)})
        if not added:
            yield from self.paths(prompt, self.on_cpu(unet)["noise_pred"])

    def paths(self, prompt, noise_pred):
        """Sampling, a step of DDIM, and both online methods' losses at likely transitions."""
        _, length, width = prompt["prompt_embeds"][0]
        negative = {"negative_prompt_embeds": normal([1, length, width], seed=7)}
        yield self.case("sample", {"latents": normal(self.latents[0], seed=8), "prompt_embeds": prompt["prompt_embeds"]} | negative,
                        {"steps": 6, "guidance_scale": 5, "adapter": str(self.adapter)}, MANY_PASSES)
        ddim = self.case("ddim", {"latents": self.latents, "noise_pred": noise_pred, "next_latents": self.latents,
                                  "timestep": prompt["timestep"]}, {"steps": 20, "eta": 1})
        yield ddim
        step = self.on_cpu(ddim)
        per_sample = len(step["mean"][1]) // len(PROMPTS)

        def reached(seed):
            noise = normal(self.latents[0], seed=seed)[1]
            stds = step["std"][1]
            return self.latents[0], [m + stds[n // per_sample] * e for n, (m, e) in enumerate(zip(step["mean"][1], noise))]

        # Without guidance, whose factor would take the prediction away from the transitions' own.
        settings = {"gamma": 0.5, "guidance_scale": 1, "steps": 20, "eta": 1, "adapter": str(self.adapter)}
        both = {"next_latents_w": reached(9), "next_latents_l": reached(10)} | prompt | negative
        yield self.case("loss", {"latents": self.latents} | both, settings | {"method": "spo", "beta": 10}, MANY_PASSES,
                        "loss and gradient, SPO")
        yield self.case("loss", {"latents_w": self.latents, "latents_l": self.latents} | both,
                        settings | {"method": "d3po", "beta": 0.1}, MANY_PASSES, "loss and gradient, D3PO")


def compare(scene, model, case, limit, dtype):
    """The largest relative error of a case's results; an adapter's gradient counts as one tensor."""
    expected, found = probe(scene, model, case, "cpu", "f32"), probe(scene, model, case, scene.place.device, dtype)
    gradient = [name for name in expected if name.startswith("grad.")]
    single = [name for name in expected if name not in gradient and (dtype == "f32" or name not in CANCELLING)]
    groups = {name: [name] for name in single} | ({"gradient": gradient} if gradient else {})
    errors = {name: relative_error([found[k] for k in keys], [expected[k] for k in keys]) for name, keys in groups.items()}
    worst = max(errors, key=lambda name: errors[name] if math.isfinite(errors[name]) else math.inf)
    bound = LIMITS[dtype][limit]
    return Result("parity", "", f"{errors[worst]:.1e} ({worst})", f"≤ {bound:g}", errors[worst] <= bound)


def check(scene):
    """A row for each stage of each small model in each dtype."""
    for model in (scene.built_in, scene.sdxl):
        adapter = scene.place.scratch / f"{model.name}-lora.safetensors"
        write_adapter(model, adapter)
        try:
            for what, limit, case in Cases(scene, model, adapter).all():
                for dtype in LIMITS:
                    title = f"{model.name}: {what}, {dtype}"
                    try:
                        result = compare(scene, model, case, limit, dtype)
                        yield Result(result.part, title, result.value, result.limit, result.good)
                    except (Failed, KeyError, ValueError) as error:
                        yield Result("parity", title, f"failed: {error}", "", False)
        except Failed as error:
            yield Result("parity", f"{model.name}: inputs", f"failed: {error}", "", False)
