#!/usr/bin/env python3
"""Show that seedpo and the Python tools share one hub cache, both ways, without a network.

    .venv/bin/python python/interop_hub.py [--seedpo target/release/seedpo] [--model assets/emoji-sd]

A stand-in hub in this process serves a pipeline folder. First seedpo downloads it by id and diffusers loads it from the
cache with `local_files_only=True`; then, into another cache, `snapshot_download` fetches it and seedpo draws from that
offline; last, each side takes up a cache that the other one filled while the hub is there. Exits 1 on a difference.
"""

import argparse
import hashlib
import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMIT, REPO = "0123456789abcdef0123456789abcdef01234567", "tiny/model"


def make_handler(folder):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    sums = {hashlib.sha256(data).hexdigest(): data for data in files.values()}
    git = lambda data: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: E731

    class Hub(http.server.BaseHTTPRequestHandler):
        log = []

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            Hub.log.append(f"{self.command} {self.path}")
            path = self.path.split("?")[0]
            resolve = [f"/{REPO}/resolve/{revision}/" for revision in (COMMIT, "main")]
            prefix = next((p for p in resolve if path.startswith(p)), None)
            if path.startswith(f"/api/models/{REPO}/tree/"):
                tree = [{"type": "file", "path": name, "size": len(data), "oid": git(data)} | (
                    {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}}
                    if name.endswith(".safetensors") else {}) for name, data in files.items()]
                self.reply(200, {"Content-Type": "application/json"}, json.dumps(tree).encode(), body)
            elif path.startswith(f"/api/models/{REPO}"):
                info = {"id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "likes": 0,
                        "siblings": [{"rfilename": name} for name in files]}
                self.reply(200, {"Content-Type": "application/json"}, json.dumps(info).encode(), body)
            elif path.startswith("/cdn/"):
                self.reply(200, {}, sums[path[5:]], body)
            elif prefix and path[len(prefix):] in files:
                data = files[path[len(prefix):]]
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{git(data)}"'}
                if path.endswith(".safetensors"):
                    total = hashlib.sha256(data).hexdigest()
                    headers |= {"X-Linked-ETag": f'"{total}"', "X-Linked-Size": str(len(data)),
                                "Location": f"http://localhost:{self.server.server_port}/cdn/{total}"}
                    self.reply(302, headers, b"", body)
                else:
                    self.reply(200, headers, data, body)
            else:
                self.reply(404, {"X-Error-Code": "EntryNotFound"}, b"", body)

        def reply(self, status, headers, data, body):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    return Hub


def run(command, environment):
    done = subprocess.run([str(part) for part in command], env=os.environ | environment, capture_output=True, text=True)
    done.returncode == 0 or sys.exit(f"interop_hub: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


LOAD = """
import torch
from diffusers import StableDiffusionPipeline
p = StableDiffusionPipeline.from_pretrained("tiny/model", local_files_only=True, safety_checker=None)
print(sum(w.double().sum().item() for w in p.unet.state_dict().values()))
"""
SNAPSHOT = "from huggingface_hub import snapshot_download; print(snapshot_download('tiny/model'))"


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seedpo", type=Path, default=ROOT / "target/release/seedpo")
    options.add_argument("--model", type=Path, default=ROOT / "assets/emoji-sd")
    chosen = options.parse_args()
    handler = make_handler(chosen.model)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
    with tempfile.TemporaryDirectory() as tmp:
        ours, theirs = ({"HF_HOME": f"{tmp}/{name}"} for name in ("ours", "theirs"))
        sample = [chosen.seedpo, "-q", "sample", "--model", REPO, "--prompt", "red apple", "--steps", "2", "--out"]
        run([*sample, f"{tmp}/a"], hub | ours)
        run([sys.executable, "-c", LOAD], ours | {"HF_HUB_OFFLINE": "1"})
        print("diffusers loads what seedpo downloaded (local_files_only)            ok")
        run([sys.executable, "-c", SNAPSHOT], hub | theirs)
        run([*sample, f"{tmp}/b"], theirs | {"HF_HUB_OFFLINE": "1"})
        print("seedpo draws offline from what snapshot_download cached              ok")
        handler.log.clear()
        run([*sample, f"{tmp}/c"], hub | theirs)
        fetched = [line for line in handler.log if "/cdn/" in line]
        fetched and sys.exit(f"interop_hub: seedpo fetched again what was cached: {fetched}")
        handler.log.clear()
        run([sys.executable, "-c", SNAPSHOT], hub | ours)
        fetched = [line for line in handler.log if "/cdn/" in line]
        wanted = [path.name for path in chosen.model.rglob("*.safetensors")]
        print(f"each side takes up the other's cache ({len(fetched)} of {len(wanted)} weight files fetched again)  ok")
        fetched and sys.exit(1)
        pictures = {Path(f"{tmp}/{name}/0000-red-apple-0.png").read_bytes() for name in "abc"}
        len(pictures) == 1 or sys.exit("interop_hub: the pictures differ")
    print("the three pictures are equal                                         ok")


if __name__ == "__main__":
    main()
