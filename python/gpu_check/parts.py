"""What the parts of the check share: where it runs, how large, and a row of the table."""

from dataclasses import dataclass
from pathlib import Path

from benchmark.work import Place

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Result:
    """A row: what was done, what came out, the limit it is held to, and whether it holds (None: nothing to hold)."""

    part: str
    what: str
    value: str
    limit: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Scene:
    """Where everything runs and on what. `dry`: on the CPU, on the built-in model in the place of the large one."""

    place: Place
    built_in: Path
    sdxl: Path
    large: Path | None
    torch_python: str | None
    dry: bool

    @property
    def large_resolution(self):
        return None if self.dry else 512

    @property
    def large_name(self):
        return "stand-in" if self.dry else "SD 1.5 size, 512 × 512"
