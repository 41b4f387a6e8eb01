#!/usr/bin/env python3
"""Put a libtorch 2.11 where the build looks for it: `.libtorch/{include,lib}` in this clone.

Order: an existing `.libtorch`; `LIBTORCH` if set; a torch 2.11 of this Python; otherwise the pinned wheels, fetched with
pip, checked against the hashes below, and only the files a CPU build needs are kept (about 500 MB).
`--gpu` fetches the full CUDA wheel set instead. `--force` starts over. Standard library only.
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "2.11.0"
CLONE = Path(__file__).resolve().parent.parent
TARGET = CLONE / ".libtorch"

# Wheels for x86-64 Linux. libtorch_cpu of this build names libcudart and libcupti, hence the two small extra ones.
WHEELS = {
    "torch==2.11.0": "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
    "nvidia-cuda-runtime==13.0.96": "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    "nvidia-cuda-cupti==13.0.85": "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
}
KEEP = re.compile(
    r"^torch/include/"
    r"|^torch/lib/(libtorch_cpu|libc10)\.so$|^torch/lib/libgomp[^/]*\.so[.0-9]*$"
    r"|^nvidia/cu13/lib/(libcudart|libcupti)\.so\.13$"
)
DOWNLOAD_MB, KEPT_MB = 545, 560


def stop(what, todo):
    """One clear line for the problem, one for the way out."""
    sys.exit(f"setup: {what}\n       {todo}")


def version_of(folder):
    """The libtorch version a folder holds, or None."""
    header = Path(folder) / "include/torch/csrc/api/include/torch/version.h"
    header2 = Path(folder) / "include/torch/headeronly/version.h"
    text = "".join(h.read_text(errors="replace") for h in (header, header2) if h.is_file())
    parts = [re.search(rf"TORCH_VERSION_{p} (\d+)", text) for p in ("MAJOR", "MINOR", "PATCH")]
    if not all(parts) or not any((Path(folder) / "lib" / n).exists() for n in ("libtorch_cpu.so", "libtorch_cpu.dylib")):
        return None
    return ".".join(p.group(1) for p in parts)


def link(folder, origin):
    """Use a libtorch that is already on this machine."""
    TARGET.mkdir()
    for part in ("include", "lib"):
        (TARGET / part).symlink_to(Path(folder).resolve() / part)
    print(f"setup: using libtorch {VERSION} from {origin}: {folder}")


def installed():
    """Where this machine already has libtorch 2.11, if anywhere."""
    named = os.environ.get("LIBTORCH")
    if named and Path(named).resolve() != TARGET:
        found = version_of(named)
        if found is None or not found.startswith("2.11."):
            stop(f"LIBTORCH is {named}, which holds {'no libtorch' if found is None else 'libtorch ' + found}; "
                 f"{VERSION} is needed.", "Unset LIBTORCH to have the pinned one fetched, or point it at a 2.11 folder.")
        return named, "LIBTORCH"
    probe = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    for python in (sys.executable, shutil.which("python3")):
        run = python and subprocess.run([python, "-c", probe], capture_output=True, text=True)
        folder = run and run.returncode == 0 and run.stdout.strip()
        if folder and (version_of(folder) or "").startswith("2.11."):
            return folder, f"the Python at {python}"
    return None, None


def check_disk(megabytes):
    free = shutil.disk_usage(CLONE).free // 2**20
    if free < megabytes:
        stop(f"{megabytes} MB of disk are needed in {CLONE}, {free} MB are free.", "Free some space and run `make setup` again.")


def pip(*arguments):
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        stop("this Python has no pip.", "Install it (Debian: apt install python3-pip), or set LIBTORCH to a libtorch 2.11 folder.")
    run = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if run.returncode != 0:
        last = [line for line in run.stderr.splitlines() if line.strip() and "notice" not in line][-3:]
        if "No space left" in run.stderr:
            stop("the disk is full.", "Free some space (also where TMPDIR points) and run `make setup` again.")
        stop("pip could not fetch the wheels; it said:\n         " + "\n         ".join(last),
             "Check the network (or your pip index settings), or set LIBTORCH to a libtorch 2.11 folder.")


def fetch_cpu():
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "AMD64"):
        stop(f"no pinned libtorch for {platform.system()} {platform.machine()}.",
             "Install torch 2.11 with this machine's pip, or set LIBTORCH to a libtorch 2.11 folder, and run `make setup` again.")
    check_disk(DOWNLOAD_MB + KEPT_MB + 200)
    print(f"setup: fetching libtorch {VERSION} ({DOWNLOAD_MB} MB, {KEPT_MB} MB kept in .libtorch) ...", flush=True)
    with tempfile.TemporaryDirectory(dir=CLONE, prefix=".libtorch-new-") as scratch:
        wheels, new = Path(scratch) / "wheels", Path(scratch) / "new"
        tags = [f"--platform=manylinux_2_{n}_x86_64" for n in (17, 24, 25, 26, 27, 28)] + ["--platform=manylinux2014_x86_64"]
        pip("download", "-q", "--no-deps", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", *tags,
            "-d", str(wheels), *WHEELS)
        for wheel in sorted(wheels.iterdir()):
            with open(wheel, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)
            if found not in WHEELS.values():
                stop(f"{wheel.name} has the wrong checksum: {found}.", "The download is damaged or not the pinned file; run `make setup` again.")
            with zipfile.ZipFile(wheel) as archive:
                for name in filter(KEEP.match, archive.namelist()):
                    if name.endswith("/"):
                        continue
                    out = new / (name.removeprefix("torch/") if name.startswith("torch/") else "lib/" + name.rsplit("/", 1)[1])
                    out.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(name) as source, open(out, "wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
        stub_libtorch(new / "lib")
        new.rename(TARGET)
    print("setup: libtorch is ready in .libtorch")


def _sha256(file):
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def stub_libtorch(lib):
    """The wheel's libtorch.so is an empty library that names the CUDA one; ours names only the CPU one."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if not compiler:
        stop("no C++ compiler found.", "Install one (Debian: apt install g++) and run `make setup` again.")
    subprocess.run([compiler, "-shared", "-o", lib / "libtorch.so", "-Wl,--no-as-needed", "-L", lib, "-ltorch_cpu", "-lc10",
                    "-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN", "-Wl,-soname,libtorch.so"], check=True)


def fetch_gpu():
    check_disk(9000)
    print("setup: fetching torch with CUDA (about 3 GB to download, 7 GB kept) ...", flush=True)
    site = CLONE / ".libtorch-gpu"
    shutil.rmtree(site, ignore_errors=True)
    pip("install", "-q", "--target", str(site), f"torch=={VERSION}")
    link(site / "torch", "the CUDA wheels")


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--gpu", action="store_true", help="fetch the CUDA wheel set")
    options.add_argument("--force", action="store_true", help="replace what is in .libtorch")
    chosen = options.parse_args()
    if chosen.force and (TARGET.exists() or TARGET.is_symlink()):
        shutil.rmtree(TARGET)
    if TARGET.exists():
        found = version_of(TARGET)
        if found and found.startswith("2.11."):
            return
        shutil.rmtree(TARGET)
    if chosen.gpu:
        return fetch_gpu()
    folder, origin = installed()
    if folder:
        return link(folder, origin)
    fetch_cpu()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        if error.errno == 28:
            stop("the disk is full.", "Free some space and run `make setup` again.")
        raise
