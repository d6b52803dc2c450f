"""Checkpoints: what is saved comes back, what does not fit is named, what was touched is not trusted."""

import pickle
from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import BaseModel
from torch import nn

from equipoise.errors import ModelError
from equipoise.models.checkpoints import (
    last_sealed,
    load_card,
    load_into,
    load_tensors,
    require_all,
    save_card,
    save_tensors,
    seal,
    trainable,
)


class Card(BaseModel):
    kind: Literal["a", "b"]
    size: int


def one_line(error: pytest.ExceptionInfo[ModelError], *parts: str) -> None:
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {"a": torch.randn(3, 4).T, "b.c": torch.arange(5), "d": torch.zeros(0, 2)}
    save_tensors(tmp_path / "deep" / "w.safetensors", tensors)
    found = load_tensors(tmp_path / "deep" / "w.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["w.safetensors"]


def test_only_what_is_trained_is_kept_and_it_fits_again() -> None:
    torch.manual_seed(0)
    net, other = (
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)),
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)),
    )
    net[0].requires_grad_(False)
    assert set(trainable(net)) == {"1.weight", "1.bias"}
    before = other[0].weight.clone()
    load_into(other, trainable(net), "here")
    assert torch.equal(other[1].weight, net[1].weight)
    assert torch.equal(other[0].weight, before)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"waight": torch.zeros(3, 2)}, "w.st: tensor 'waight' has no place in this model"),
        ({"weight": torch.zeros(2, 2)}, "w.st: tensor 'weight' has shape [2, 2], expected [3, 2]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named_and_nothing_is_copied(tensors: dict, says: str) -> None:
    layer = nn.Linear(2, 3)
    before = layer.weight.clone()
    with pytest.raises(ModelError) as caught:
        load_into(layer, {"bias": torch.ones(3)} | tensors, "w.st")
    one_line(caught, says)
    assert torch.equal(layer.weight, before)
    assert not torch.equal(layer.bias, torch.ones(3))


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(ModelError) as caught:
        require_all({"a": torch.zeros(1)}, ["a", "c", "b"], "w.st")
    one_line(caught, "w.st: 2 tensors are missing, the first is b")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    bomb = type("Bomb", (), {"__reduce__": lambda self: (Path.touch, (marker,))})
    (tmp_path / "w.safetensors").write_bytes(pickle.dumps(bomb()))
    with pytest.raises(ModelError) as caught:
        load_tensors(tmp_path / "w.safetensors")
    one_line(caught, "w.safetensors: not a safetensors file")
    assert not marker.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load_tensors(tmp_path / "none.safetensors")
    one_line(caught, "none.safetensors: no such file")


def test_a_card_comes_back(tmp_path: Path) -> None:
    save_card(tmp_path, Card(kind="b", size=3))
    assert load_card(tmp_path, Card) == Card(kind="b", size=3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no model.json; expected a folder written by `equipoise train`"),
        (b'{"kind": "c", "size": 1}', "model.json: kind: "),
        (b'{"kind": "a"}', "model.json: size: missing"),
        (b"not json", "model.json: "),
        (b"\xff\xfe", "model.json: "),
    ],
)
def test_a_folder_that_is_something_else_is_one_line(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "model.json").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_card(tmp_path, Card)
    one_line(caught, says)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Checkpoints 2 and 10 sealed, 11 not."""
    for number in (2, 10, 11):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "state.json").write_text(f"{number}")
        if number != 11:
            seal(folder)
    return tmp_path


def test_the_newest_sealed_checkpoint_is_taken_by_number(training: Path) -> None:
    found = last_sealed(training)
    assert found is not None
    assert found.name == "checkpoint-10"


@pytest.mark.parametrize("damage", ["changed", "missing", "broken seal", "seal of another kind"])
def test_a_checkpoint_that_was_touched_is_passed_over(training: Path, damage: str) -> None:
    newest = training / "checkpoint-10"
    if damage == "changed":
        (newest / "state.json").write_text("11")
    elif damage == "missing":
        (newest / "state.json").unlink()
    else:
        (newest / "complete.json").write_text('{"state.j' if damage == "broken seal" else "[1]")
    found = last_sealed(training)
    assert found is not None
    assert found.name == "checkpoint-2"


def test_where_no_checkpoint_is_whole_there_is_none(tmp_path: Path, training: Path) -> None:
    for number in (2, 10):
        (training / f"checkpoint-{number}" / "complete.json").unlink()
    assert last_sealed(training) is None
    assert last_sealed(tmp_path / "nowhere") is None
