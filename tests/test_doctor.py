"""What the doctor says of this machine, and how each gap can be closed."""

import json
from pathlib import Path

import pytest
import torch

from equipoise import __version__
from equipoise.doctor import as_text, examine
from equipoise.extras import EXTRAS
from equipoise.models.wheels import BUILTIN


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without any model."""
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))
    return tmp_path


def test_the_findings_are_plain_values_and_true_of_this_machine(cache: Path) -> None:
    found = json.loads(json.dumps(examine()))
    assert (found["equipoise"], found["cache"]) == (__version__, str(cache))
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"]["torch"] == torch.__version__
    assert found["models"] == dict.fromkeys(BUILTIN)
    assert found["extras"].keys() == EXTRAS.keys()
    assert found["torch_error"] is None


def test_a_model_counts_as_installed_only_when_it_is_whole(cache: Path) -> None:
    folder = cache / "models" / "minilm"
    folder.mkdir(parents=True)
    assert examine()["models"]["minilm"] is None
    (folder / "source.json").write_text("{}")
    assert examine()["models"]["minilm"] == str(folder)


def test_the_text_says_of_each_gap_how_to_close_it() -> None:
    report = examine() | {
        "extras": {"train": ["torch", "peft"], "hub": []},
        "models": {"minilm": None, "smollm2-135m": "a/folder"},
        "devices": [],
        "threads": None,
        "torch_error": "a library is missing",
    }
    lines = as_text(report).splitlines()
    assert "  minilm: missing; to get it: equipoise models install minilm" in lines
    assert "  smollm2-135m: installed" in lines
    assert "  train: missing torch, peft; to get it: pip install 'equipoise[train]'" in lines
    assert "  hub: complete" in lines
    assert "torch      cannot be imported: a library is missing" in lines
