"""Calibration of a guard: a line through the log-odds of each head, so that its probabilities come true.

It lies in the guard's folder as `calibration.json` and belongs to that guard's weights alone. A line
rises, so it never changes the order of two texts within a head. What was not calibrated stays as it is.

Shapes: B batch, K severity thresholds (levels above 0), C categories.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from torch import Tensor

from equipoise.config import Config, explain
from equipoise.errors import ModelError
from equipoise.lineage import hash_file, write_text
from equipoise.models.guard import Target
from equipoise.models.heads import GuardLogits

FILE = "calibration.json"
WEIGHTS = "weights.safetensors"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Line(Config):
    """Calibrated log-odds are slope * log-odds + intercept. Platt 1999."""

    slope: Positive
    intercept: Finite

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-odds of any shape -> calibrated log-odds."""
        return self.slope * logits + self.intercept


class Calibration(Config):
    """The line of each head that was calibrated."""

    kind: Literal["equipoise-calibration"] = "equipoise-calibration"
    version: Literal[1] = 1
    weights: str
    """Sha256 of the weights that it belongs to."""
    unsafe: dict[Target, Line] = Field(min_length=1)
    """P(unsafe), of prompts and of responses."""
    severity: dict[int, Line] = {}
    """P(severity >= level | severity >= level - 1), for levels from 2."""
    categories: dict[str, Line] = {}
    """P(category | unsafe)."""
    shared: tuple[str, ...] = ()
    """Categories with too few rows for a line of their own; they have the one of all categories together."""
    refusal_temperature: Positive | None = None
    """Logits of the refusal head are divided by it. Guo et al. 2017."""

    def apply(self, logits: GuardLogits, targets: Sequence[Target], names: Sequence[str]) -> GuardLogits:
        """Return calibrated logits.

        Args:
            logits: Of B texts.
            targets: Whether each is a prompt or a response.
            names: The guard's categories, in head order.
        """
        severity, categories = logits.severity.clone(), logits.categories.clone()
        for target, line in self.unsafe.items():
            rows = [row for row, kind in enumerate(targets) if kind == target]
            severity[rows, 0] = line(severity[rows, 0])
        for level, line in self.severity.items():
            severity[:, level - 1] = line(severity[:, level - 1])
        for name, line in self.categories.items():
            head = names.index(name)
            categories[:, head] = line(categories[:, head])
        return GuardLogits(severity, categories, logits.refusal / (self.refusal_temperature or 1.0))


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Write `calibration.json` into a guard's folder."""
    write_text(folder / FILE, calibration.model_dump_json(indent=2))


def load_calibration(folder: Path) -> Calibration | None:
    """Return the calibration in a guard's folder, if any; one of other weights raises ModelError."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        calibration = Calibration.model_validate_json(path.read_text("utf-8"))
    except UnicodeDecodeError as exc:
        raise ModelError(f"{path}: not UTF-8") from exc
    except ValidationError as exc:
        raise ModelError(explain(str(path), Calibration, exc)) from exc
    if calibration.weights != hash_file(folder / WEIGHTS):
        raise ModelError(f"{path}: belongs to other weights; calibrate this guard with `equipoise calibrate`")
    return calibration
