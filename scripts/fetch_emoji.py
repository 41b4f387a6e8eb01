#!/usr/bin/env python3
"""Fetch what `seedpo pretrain` learns from into `.emoji/`: images, names and keywords of 1,911 emoji (74 MB to download,
9 MB kept).

Two npm packages, fetched with `npm pack` and checked against the hashes below:
emoji-datasource-google 16.0.0 (names, categories; images of Noto Emoji) and emojilib 4.0.3 (keywords).
`--from FOLDER` takes tarballs that are there already; `--force` starts over. Standard library only.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / ".emoji"
# package -> (sha256 of its tarball, member prefix -> place in .emoji)
PACKAGES = {
    "emoji-datasource-google@16.0.0": (
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        {
            "package/emoji.json": "emoji.json",
            "package/LICENSE": "LICENSE",
            "package/README.md": "README.md",
            "package/img/google/64/": "img/google/64/",
        },
    ),
    "emojilib@4.0.3": (
        "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303",
        {"package/dist/emoji-en-US.json": "keywords.json", "package/LICENSE": "LICENSE-emojilib"},
    ),
}


def stop(what, todo):
    """One clear line for the problem, one for the way out."""
    sys.exit(f"emoji: {what}\n       {todo}")


def pack(package, folder):
    """The package's tarball, fetched by npm into `folder`."""
    if not shutil.which("npm"):
        stop("npm is missing.", f"Install Node.js (https://nodejs.org), or put the tarball of {package} in a folder and name it with --from.")
    print(f"emoji: fetching {package} ...", flush=True)
    done = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
    tarballs = sorted(folder.glob("*.tgz"), key=lambda p: p.stat().st_mtime)
    if done.returncode != 0 or not tarballs:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        stop(f"`npm pack {package}` failed: {last}", "Is the network up, and is there room on the disk? Run again to retry.")
    return tarballs[-1]


def check(tarball, package, expected):
    """Stop unless the file's SHA-256 is the pinned one."""
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if found != expected:
        stop(f"{tarball.name} is not the {package} that is pinned: expected SHA-256 {expected}, found {found}.",
             "Delete it and run again; if it persists, the registry serves another file.")


def unpack(tarball, places, folder):
    """Write the wanted members of the tarball under `folder`."""
    with tarfile.open(tarball) as archive:
        for member in archive:
            place = next((to + member.name[len(start):] for start, to in places.items() if member.name.startswith(start)), None)
            if place is None or not member.isfile() or ".." in place:
                continue
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.extractfile(member).read())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, metavar="FOLDER", help="a folder that holds the two tarballs")
    parser.add_argument("--force", action="store_true", help="fetch again even if .emoji is there")
    arguments = parser.parse_args()
    if TARGET.exists() and not arguments.force:
        print(f"emoji: {TARGET} is there already (--force fetches it again)")
        return
    try:
        with tempfile.TemporaryDirectory(dir=TARGET.parent, prefix=".emoji-") as scratch:
            ready = Path(scratch) / "ready"
            for number, (package, (expected, places)) in enumerate(PACKAGES.items()):
                folder = Path(scratch) / str(number)
                folder.mkdir()
                name = package.replace("@", "-") + ".tgz"
                tarball = arguments.source / name if arguments.source else pack(package, folder)
                if not tarball.is_file():
                    stop(f"{tarball} is not there.", f"Make it with `npm pack {package}`.")
                check(tarball, package, expected)
                unpack(tarball, places, ready)
            if TARGET.exists():
                shutil.rmtree(TARGET)
            ready.rename(TARGET)
    except OSError as error:
        stop(f"{error.filename or TARGET}: {error.strerror or error}", "Free some disk space or fix the permissions, then run again.")
    count = len(list((TARGET / "img/google/64").glob("*.png")))
    print(f"emoji: {count} images in {TARGET}")


if __name__ == "__main__":
    main()
