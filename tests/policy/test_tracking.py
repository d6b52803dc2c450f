"""Numbers of a log that go to trackers."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from equipoise.errors import ConfigError
from equipoise.policy.tracking import tracking


class Lines(GeneralTracker):  # type: ignore[misc]
    """A tracker that writes lines of text."""

    name = "lines"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: Path) -> None:
        super().__init__()
        self.path = logging_dir / f"{run_name}.txt"

    @property
    def tracker(self) -> Path:
        return self.path

    def start(self) -> None:
        self.path.parent.mkdir()

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(f"{step} {values}\n")

    def finish(self) -> None:
        with self.path.open("a") as file:
            file.write("end\n")


def test_a_tracker_gets_every_number_with_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "lines", Lines)
    with tracking(["lines"], tmp_path / "trackers", "cpu") as send:
        send({"update": 1, "costs": {"harm": 0.5}, "states": {"harm": "active"}, "warnings": []}, 1)
        send({"update": 2, "harmful": None}, 2)
    found = (tmp_path / "trackers" / "equipoise.txt").read_text()
    assert found == "1 {'update': 1, 'costs/harm': 0.5}\n2 {'update': 2}\nend\n"


def test_a_tracker_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"report_to: got 'tensorbord' \(did you mean 'tensorboard'\?\)"),
        tracking(["tensorbord"], tmp_path, "cpu"),
    ):
        raise AssertionError("unreachable")
