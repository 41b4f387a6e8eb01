"""Finding what the check needs: the GPU, libtorch with CUDA, a Python with torch, the large folder, a carried pack."""

import gzip
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmark.process import Failed
from gpu_check.parts import REPOSITORY

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
WHEELS = ("diffusers==0.38.0", "importlib_metadata==8.7.0")


def gpu_name():
    """The first GPU's name and memory, or None where there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    shown = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True)
    lines = shown.stdout.strip().splitlines()
    return lines[0] if shown.returncode == 0 and lines else None


def torch_folder(python):
    """Where this Python keeps torch, or None."""
    ask = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    run = subprocess.run([python, "-c", ask], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return Path(run.stdout.strip()) if run.returncode == 0 and run.stdout.strip() else None


def find_python(named):
    """The Python with torch: the one named, else this one, else python3; None if none has it."""
    for python in [named] if named else [sys.executable, shutil.which("python3")]:
        if python and torch_folder(python):
            return str(python)
    if named:
        raise Failed(f"--python {named}: this Python has no torch")
    return None


def libraries(python, cuda):
    """LD_LIBRARY_PATH with libtorch (CUDA's, if asked for): LIBTORCH, else .libtorch here, else the Python's torch."""
    torch = torch_folder(python) if python else None
    candidates = [Path(os.environ["LIBTORCH"])] if os.environ.get("LIBTORCH") else [REPOSITORY / ".libtorch"]
    wanted = "libtorch_cuda.so" if cuda else "libtorch_cpu.so"
    for folder in [*candidates, *([torch] if torch else [])]:
        if (folder / "lib" / wanted).exists():
            lib = (folder / "lib").resolve()
            # CUDA's own libraries lie beside torch in its wheels.
            paths = [lib, *sorted(lib.parent.parent.glob("nvidia/*/lib")), os.environ.get("LD_LIBRARY_PATH", "")]
            return {"LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in paths if str(path))}
    raise Failed(f"no libtorch with {wanted} in LIBTORCH, .libtorch or torch's Python; `python3 scripts/setup_libtorch.py "
                 "--gpu --force` fetches one")


def pack(folder, seedpo):
    """Put into a folder what a GPU machine without network lacks: the binary, CLIP's vocabulary, pure-Python wheels."""
    from make_models import fetch_merges

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy2(seedpo, folder / "seedpo")
    (folder / VOCABULARY).write_bytes(gzip.compress(fetch_merges().encode("utf-8")))
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder, *WHEELS]
    if subprocess.run(fetch).returncode != 0:
        raise Failed(f"pip could not fetch {', '.join(WHEELS)}")
    return sum(path.stat().st_size for path in folder.iterdir())


def unpack(folder, scratch):
    """The environment in which the pack's wheels can be imported."""
    site = scratch / "site"
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))}


def large_folder(named, python, carried, environment):
    """The folder of Stable Diffusion 1.5's size, written if it is not there; a reason where it cannot be."""
    folder = named or REPOSITORY / "target/models/sd15"
    if (folder / "model_index.json").is_file():
        return folder, ""
    if not python:
        return None, f"{folder} is not there, and writing it needs a Python with torch, diffusers and transformers"
    command = [python, REPOSITORY / "python/make_models.py", "sd15", folder, "--dtype", "f16"]
    if carried and (carried / VOCABULARY).is_file():
        command += ["--vocabulary", carried / VOCABULARY]
    made = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ | environment)
    if made.returncode != 0:
        last = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        return None, f"{folder} could not be written: {last}"
    return folder, ""
