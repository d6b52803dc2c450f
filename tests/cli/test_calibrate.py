"""`calibrate` as a user types it, and what `moderate` makes of it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import Result

from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard, GuardModel
from equipoise.records import Exchange
from equipoise.taxonomy import load_taxonomy

Call = Callable[..., Result]
SETTINGS = ["--set", "least=5", "--set", "folds=2", "--set", "draws=100"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """A folder with `guard` and `labelled.jsonl`."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("calibrate")
    card = GuardCard(
        taxonomy=load_taxonomy("pku19"),
        backbone=str(tiny_encoder),
        layers=2,
        hidden=4,
        targets=("response",),
        knows_refusals=False,
    )
    model = GuardModel(card, load_encoder(tiny_encoder, device="cpu"))
    model.trunk.requires_grad_(False)
    (place / "guard").mkdir()
    model.save(place / "guard")
    rows = [
        Exchange(id=f"r{i}", prompt=f"question {i}", response=f"bread {i % 7} coat", is_safe=i % 3 == 0)
        for i in range(120)
    ]
    write_records(place / "labelled.jsonl", rows)
    return place


def words(place: Path, out: str, *more: str) -> list[Any]:
    given = ["--guard", place / "guard", "--data", place / "labelled.jsonl", "--out", place / out]
    return ["calibrate", *given, *SETTINGS, *more]


def test_a_guard_is_calibrated_and_its_policies_decide(
    call: Call, tell: Callable[..., dict[str, Any]], place: Path
) -> None:
    shown = call(*words(place, "new")).stdout.splitlines()
    assert shown[0] == "120 labelled texts to 120 prompts"
    assert re.fullmatch(r"  unsafe responses: calibration error -?0\.\d+ \(at most 0\.\d+\)", shown[1])
    assert shown[-2] == "  not checked for prompts that the guard was trained on: all of them"
    assert shown[-1] == f"wrote {place / 'new'}"
    found = tell(*words(place, "new"))
    assert (found["skipped"], found["texts"]) == (True, 120)
    text = ["moderate", "hi", "--response", "yes", "--guard", place / "new"]
    assert tell(*text)["policy"] == "moderate"
    assert tell(*text, "--policy", "strict")["policy"] == "strict"


def test_presets_take_other_aims_and_a_band(call: Call, place: Path) -> None:
    more = ["--set", "presets.strict.unsafe.recall=0.9", "--set", "review=[0.3, 0.7]"]
    call(*words(place, "aims", *more))
    text = (place / "aims" / "policies" / "strict.yaml").read_text()
    assert "recall at least 0.9" in text
    asked = ["moderate", "hi", "--response", "yes", "--guard", place / "aims", "--json"]
    assert "review" in json.loads(call(*asked).stdout)


@pytest.mark.parametrize(
    ("drop", "more", "kind", "says"),
    [
        ("--guard", [], ConfigError, "guard: missing"),
        ("--data", [], ConfigError, "data: missing"),
        ("", ["--set", "certify=true"], DataError, "loose: unsafe response: .* cannot show a false-positive"),
        ("", ["--set", "least=100"], DataError, "too few labelled rows, got prompts 0 safe"),
        ("", ["--set", "presets.strct.unsafe.recall=1"], ConfigError, r"strct: no such .* 'strict'\?"),
        (
            "",
            ["--set", "presets.loose.unsafe={recall: 0.5, false_positive_rate: 0.5}"],
            ConfigError,
            "expected one of false_positive_rate and recall",
        ),
    ],
)
def test_mistakes_are_one_line(
    *, call: Call, place: Path, drop: str, more: list[str], kind: type[Exception], says: str
) -> None:
    given = words(place, "bad", *more)
    if drop:
        where = given.index(drop)
        del given[where : where + 2]
    with pytest.raises(kind, match=says) as caught:
        call(*given)
    assert "\n" not in str(caught.value)
    assert not (place / "bad").exists()
