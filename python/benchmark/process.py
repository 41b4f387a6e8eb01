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
    """The most GPU memory in use while a block ran, as nvidia-smi sees it; measures nothing where there is none."""

    def __init__(self, wanted):
        self.before = self.most = None
        self.reader = None
        if wanted:
            query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
            self.before = int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) * 2**20
            self.most = self.before
            self.reader = subprocess.Popen([*query, "--loop-ms=50"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.reader.stdout:
            if line.strip().isdigit():
                self.most = max(self.most, int(line) * 2**20)

    def stop(self):
        """Bytes beyond those in use before, or None."""
        if self.reader is None:
            return None
        self.reader.terminate()
        self.reader.wait()
        return self.most - self.before


def run(command, log, environment=None, gpu=False):
    """Run a command with its output in `log`; what it used. Raises Failed with its last lines if it fails."""
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
