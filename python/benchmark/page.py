"""Turns, medians, tables, and the place of a table in a page."""

import datetime
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmark import work as works
from benchmark.process import Failed

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MIB = 2**20


@dataclass(frozen=True)
class Goal:
    """At least this many times faster than the baseline, and at most this share of its peak memory."""

    speed: float | None = None
    memory: float | None = None


@dataclass
class Row:
    """One piece of work and what each side measured, turn by turn; or why a side did not end well."""

    work: works.Work
    goal: Goal
    ours: list
    theirs: list
    failure: str = ""

    def seconds(self, side):
        return [second for one in side for second in one.seconds]

    def median(self, side):
        return statistics.median(self.seconds(side))

    def peak(self, side, gpu=False):
        return statistics.median(one.used.gpu_peak if gpu else one.used.peak for one in side)

    def part(self, side, name):
        return statistics.median(one.part(name) for one in side)


def measure(rows, turns, place):
    """Run both sides of each (work, goal) in turns, the order swapping each time; a Row for each."""
    done = []
    for work, goal in rows:
        row = Row(work, goal, [], [])
        sides = [("seedpo", works.seedpo, row.ours), ("PyTorch", works.pytorch, row.theirs)]
        for turn in range(turns):
            for name, side, kept in sides if turn % 2 == 0 else sides[::-1]:
                if row.failure:
                    continue
                try:
                    kept.append(side(work, place))
                except (Failed, ValueError) as error:
                    row.failure = f"{name}: {error}"
                    say(f"{work.title}: {row.failure}")
                    continue
                one = kept[-1]
                say(f"{work.title}, turn {turn + 1}, {name}: {', '.join(f'{s:.2f}' for s in one.seconds)} s; whole command "
                    f"{one.used.wall:.1f} s; {one.used.peak / MIB:.0f} MiB; load {os.getloadavg()[0]:.1f}")
        done.append(row)
    return done


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def verdict(value, goal, at_least):
    """A ratio with its goal and whether it is reached."""
    if goal is None:
        return f"{value:.2f}"
    reached = value >= goal if at_least else value <= goal
    return f"**{value:.2f}** ({'≥' if at_least else '≤'} {goal:g}: {'reached' if reached else 'missed'})"


def speed_table(rows, gpu=False):
    """The comparison as a markdown table: how many times faster, and what share of the memory, each with its goal."""
    lines = [f"| work | dtype | PyTorch s | seedpo s | times faster (goal) | PyTorch {'GPU ' if gpu else ''}MiB | seedpo MiB | "
             "share of memory (goal) |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        if row.failure:
            lines.append(f"| {row.work.title} | {row.work.dtype} | | | did not run: {row.failure.splitlines()[0]} | | | |")
            continue
        ours, theirs = row.peak(row.ours, gpu), row.peak(row.theirs, gpu)
        dtype = row.work.dtype if row.ours[0].dtype == row.work.dtype else f"{row.work.dtype}, ours {row.ours[0].dtype}"
        lines.append(f"| {row.work.title} | {dtype} | {row.median(row.theirs):.2f} | {row.median(row.ours):.2f} | "
                     f"{verdict(row.median(row.theirs) / row.median(row.ours), row.goal.speed, True)} | {theirs / MIB:.0f} | "
                     f"{ours / MIB:.0f} | {verdict(ours / theirs, row.goal.memory, False)} |")
    return "\n".join(lines)


def parts_table(rows):
    """Where each side's iteration goes, and how far its repetitions lie apart."""
    lines = ["| work | | rollout s | judge s | train s | pairs | range of the whole, s |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        if row.failure or not row.ours[0].parts:
            continue
        for name, side in (("PyTorch", row.theirs), ("seedpo", row.ours)):
            pairs = statistics.median(count for one in side for count in one.pairs)
            lines.append(f"| {row.work.title} | {name} | " + " | ".join(f"{row.part(side, part):.2f}" for part in works.PARTS)
                         + f" | {pairs:.0f} | {min(row.seconds(side)):.2f} to {max(row.seconds(side)):.2f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def output_of(*command):
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, stdin=subprocess.DEVNULL)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def versions(packages=("torch", "diffusers", "peft")):
    """The packages of this Python with their versions."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def machine(load):
    """What the numbers were measured on, and how busy it was before."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    model = names[0] if names else platform.processor() or platform.machine()
    extra = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if f" {flag} " in cpuinfo]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no", "crates", "python")
    dirty = " with uncommitted changes" if changed and changed != "unknown" else ""
    return (f"{datetime.date.today()}, commit {output_of('git', 'rev-parse', '--short=10', 'HEAD')}{dirty}; {model}, "
            f"{os.cpu_count()} cores ({', '.join(extra) or 'no AVX-512'}), {memory:.0f} GiB, {platform.system()}; "
            f"{versions()}; load average {load:.1f} before and {os.getloadavg()[0]:.1f} after.")


def parts_of(path, name):
    """The page before the marker `<!-- bench:NAME -->`, both markers, and the page after; stops where it has none."""
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if begin not in text or end not in text:
        sys.exit(f"{path} lacks the markers {begin} and {end}")
    return text.split(begin, 1)[0], begin, end, text.split(end, 1)[1]


def update(path, name, text):
    """Put the text between the page's markers of that name."""
    before, begin, end, after = parts_of(path, name)
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
