"""Inputs of settings in a mapping or a list: they are found, and what they hold decides the run."""

from pathlib import Path

import pytest

from equipoise.config import Config, InputPath, find_inputs
from equipoise.errors import DataError
from equipoise.lineage import Step, identify


class Files(Config):
    train: InputPath | None = None
    more: tuple[InputPath, ...] = ()


class Many(Config):
    by_name: dict[str, Files] = {}
    in_turn: tuple[Files, ...] = ()


STEP = Step("test.many", 1, lambda *_: None, config=Many)


def settings(place: Path) -> Many:
    return Many(by_name={"a": Files(train=place)}, in_turn=(Files(), Files(more=(place,))))


def test_they_are_named_by_key_and_place(tmp_path: Path) -> None:
    assert find_inputs(settings(tmp_path)) == {"by_name.a.train": tmp_path, "in_turn.1.more.0": tmp_path}


def test_what_they_hold_decides_and_where_they_lie_does_not(tmp_path: Path) -> None:
    data, copy = tmp_path / "data.txt", tmp_path / "copy.txt"
    for path in (data, copy):
        path.write_text("rows", "utf-8")
    assert identify(STEP, settings(copy)).key == identify(STEP, settings(data)).key
    copy.write_text("other rows", "utf-8")
    assert identify(STEP, settings(copy)).key != identify(STEP, settings(data)).key


def test_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"by_name\.a\.train: .*no such file"):
        identify(STEP, settings(tmp_path / "none.txt"))
