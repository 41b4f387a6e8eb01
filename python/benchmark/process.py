"""Running a command and measuring what it used."""

import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path


class Failed(Exception):
    """A command that did not end well; the text's first line says why, the others name it and what it printed."""


@dataclass(frozen=True)
class Used:
    """What a process used: start (seconds since the epoch), wall seconds, peak resident bytes, peak bytes of GPU memory
    beyond what was taken before (None without a GPU)."""

    began: float
    wall: float
    peak: int
    gpu_peak: int | None


class GpuMemory:
    """The most memory of a GPU in use while something ran, as nvidia-smi sees it; measures nothing where `index` is None.
    The allocators of both sides keep what they took until they end, so a look now and then is enough."""

    def __init__(self, index):
        self.index, self.ended = index, threading.Event()
        if index is not None:
            self.before = self.most = self.used()
            self.watcher = threading.Thread(target=self.watch, daemon=True)
            self.watcher.start()

    def used(self):
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={self.index}"]
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) * 2**20

    def watch(self):
        while not self.ended.wait(0.1):
            self.most = max(self.most, self.used())

    def stop(self):
        """Bytes beyond those in use before, or None."""
        self.ended.set()
        if self.index is None:
            return None
        self.watcher.join()
        return self.most - self.before


def run(command, log, environment=None, gpu=None):
    """Run a command with its output in `log`; what it used, also of the GPU of that number. Raises Failed with its last
    lines if it fails."""
    command = [str(part) for part in command]
    gpu_memory = GpuMemory(gpu)
    began, clock = time.time(), time.perf_counter()
    with open(log, "wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                                   env=os.environ | (environment or {}))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall, gpu_peak = time.perf_counter() - clock, gpu_memory.stop()
    if status != 0:
        why = f"exit code {process.returncode}" if process.returncode >= 0 else f"signal {-process.returncode}"
        if process.returncode == -9:
            why += " (the system kills like this when memory runs out)"
        tail = Path(log).read_text(errors="replace").strip().splitlines()[-15:] or ["it printed nothing"]
        raise Failed("\n".join([f"{why}: {tail[-1]}", f"  {' '.join(command)}", *tail[:-1]]))
    return Used(began, wall, usage.ru_maxrss * 1024, gpu_peak)


def help_of(seedpo, command, environment=None):
    """The text of `seedpo COMMAND --help`, by which a caller sees what this build can do."""
    shown = subprocess.run([seedpo, command, "--help"], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                           env=os.environ | (environment or {}))
    if shown.returncode != 0:
        raise Failed(f"{seedpo} does not run:\n{shown.stderr.strip()}")
    return shown.stdout
