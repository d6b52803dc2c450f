"""The log of online training under constraints, read back from a run's folder, finished or not.

`log.jsonl` has a line of numbers per update, `samples.jsonl` a few responses of each.
"""

from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

from equipoise.errors import DataError
from equipoise.evaluation.files import parse_lines
from equipoise.lineage import Manifest, read_manifest

LOG, SAMPLES = "log.jsonl", "samples.jsonl"


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


L = TypeVar("L", bound=_Line)


class Group(_Line):
    """One group of a MaxMin policy."""

    reward: float
    """Mean as its source gives it."""
    compared: float
    """Mean as it is compared with those of other groups."""
    weight: float


class Update(_Line):
    """One update: means over the responses of its rollout, before they were learned from."""

    update: int
    responses: int
    reward: float
    reward_std: float
    costs: dict[str, float]
    """Constraint -> mean raw cost."""
    excess: dict[str, float] = {}
    """Constraint -> what moves its multiplier: above 0 where it rises. Logs of earlier versions have none."""
    budgets: dict[str, float]
    multipliers: dict[str, float]
    states: dict[str, str]
    kl: float
    """Nats per response from the reference."""
    harmful: float | None = None
    """Mean probability of severity 1 or worse, or the share whose first cost is above 0."""
    severity: list[float] | None = None
    """Probability of each level, from 0."""
    length: float
    truncated: float
    repetition: float
    entropy: float
    clip_fraction: float
    groups: dict[str, Group] = {}
    """Where the reward is made of those of groups."""
    warnings: list[str] = []


class Sample(_Line):
    """One response that was logged."""

    update: int
    id: str
    sample: int
    prompt: str
    response: str
    reward: float
    costs: dict[str, float] = {}


class TrainingRun(NamedTuple):
    """A run of online training."""

    name: str
    path: Path
    manifest: Manifest | None
    """None of a run that goes on or was stopped."""
    updates: list[Update]
    samples: list[Sample]


def is_training(folder: Path) -> bool:
    """Whether a folder holds the log of online training under constraints."""
    path = folder / LOG
    if not path.is_file():
        return False
    with path.open(encoding="utf-8") as lines:
        return '"multipliers"' in lines.readline()


def load_training(folder: Path) -> TrainingRun:
    """Read a run's log and samples; lines that are not of these raise DataError."""
    manifest = folder / "manifest.json"
    updates = _read(folder / LOG, Update)
    if not updates:
        raise DataError(f"{folder / LOG}: holds no update yet")
    return TrainingRun(
        folder.resolve().name,
        folder,
        read_manifest(manifest) if manifest.is_file() else None,
        updates,
        _read(folder / SAMPLES, Sample),
    )


def _read(path: Path, kind: type[L]) -> list[L]:
    """Read a log without a last line that is being written."""
    text = path.read_text("utf-8") if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    return parse_lines(whole, kind, path) if whole else []
