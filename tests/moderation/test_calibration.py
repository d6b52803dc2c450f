"""Calibration of a guard: order stays, what has no line stays, and it fits its own weights only."""

import json
from pathlib import Path

import pytest
import torch

from equipoise.errors import ModelError
from equipoise.lineage import hash_file
from equipoise.models.heads import GuardLogits
from equipoise.moderation.calibration import (
    FILE,
    WEIGHTS,
    Calibration,
    Line,
    load_calibration,
    save_calibration,
)

NAMES = ("a", "b", "c", "d")
LINE = Line(slope=2.0, intercept=-1.0)


def some_logits(count: int = 200) -> GuardLogits:
    torch.manual_seed(0)
    return GuardLogits(*(3 * torch.randn(count, size) for size in (3, 4, 3)))


def test_each_head_gets_its_own_line_and_the_others_stay() -> None:
    logits = some_logits(4)
    calibration = Calibration(
        weights="w",
        unsafe={"prompt": LINE},
        severity={3: Line(slope=0.5, intercept=1.0)},
        categories={"c": Line(slope=3.0, intercept=0.0)},
        refusal_temperature=4.0,
    )
    found = calibration.apply(logits, ["prompt", "response", "prompt", "response"], NAMES)
    severity, categories = logits.severity.clone(), logits.categories.clone()
    severity[[0, 2], 0] = 2 * severity[[0, 2], 0] - 1
    severity[:, 2] = severity[:, 2] / 2 + 1
    categories[:, 2] *= 3
    assert torch.equal(found.severity, severity)
    assert torch.equal(found.categories, categories)
    assert torch.equal(found.refusal, logits.refusal / 4)


def test_the_order_within_a_head_stays() -> None:
    logits = some_logits()
    lines = {name: Line(slope=0.01 + i, intercept=i - 2.0) for i, name in enumerate(NAMES)}
    calibration = Calibration(
        weights="w", unsafe={"response": LINE}, severity={2: LINE, 3: LINE}, categories=lines
    )
    found = calibration.apply(logits, ["response"] * 200, NAMES)
    for before, after in ((logits.severity, found.severity), (logits.categories, found.categories)):
        assert not torch.equal(before, after)
        assert torch.equal(before.argsort(0), after.argsort(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / WEIGHTS).write_bytes(b"these weights")
    return tmp_path


def saved(folder: Path) -> Calibration:
    calibration = Calibration(
        weights=hash_file(folder / WEIGHTS), unsafe={"prompt": LINE}, severity={2: LINE}, shared=("a",)
    )
    save_calibration(folder, calibration)
    return calibration


def test_it_comes_back_from_its_file(folder: Path) -> None:
    assert load_calibration(folder) is None
    calibration = saved(folder)
    assert load_calibration(folder) == calibration


def test_it_is_refused_beside_other_weights(folder: Path) -> None:
    saved(folder)
    (folder / WEIGHTS).write_bytes(b"other weights")
    with pytest.raises(ModelError, match=r"calibration\.json: belongs to other weights"):
        load_calibration(folder)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("slope", 0, "unsafe.prompt.slope: .* got 0"),
        ("slope", -1.5, "unsafe.prompt.slope"),
        ("slope", float("nan"), "unsafe.prompt.slope"),
        ("intercept", float("inf"), "unsafe.prompt.intercept"),
        ("intercpt", 1, r"no such setting \(did you mean 'intercept'\?\)"),
    ],
)
def test_a_file_that_would_break_the_order_is_refused(
    folder: Path, place: str, value: float, says: str
) -> None:
    saved(folder)
    data = json.loads((folder / FILE).read_text())
    data["unsafe"]["prompt"][place] = value
    (folder / FILE).write_text(json.dumps(data))
    with pytest.raises(ModelError, match=says) as caught:
        load_calibration(folder)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_calibration_is_refused(folder: Path) -> None:
    for raw in (b"\xff\xfe", b"[1", b'{"kind": "equipoise-guard"}'):
        (folder / FILE).write_bytes(raw)
        with pytest.raises(ModelError, match=r"calibration\.json"):
            load_calibration(folder)
