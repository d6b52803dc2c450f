"""`equipoise models` and `equipoise doctor`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from equipoise import __version__
from equipoise.cli.models import app, doctor
from equipoise.errors import ModelError
from equipoise.models.wheels import BUILTIN

doctor_app = typer.Typer()
doctor_app.command()(doctor)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds minilm and nothing else."""
    folder = tmp_path / "models" / "minilm"
    folder.mkdir(parents=True)
    (folder / "source.json").write_text("{}")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path))
    return tmp_path


def test_the_list_says_what_is_installed(cache: Path) -> None:
    result = CliRunner().invoke(app, ["list", "--json"])
    models = {m["name"]: m for m in json.loads(result.stdout)["models"]}
    assert models.keys() == BUILTIN.keys()
    assert models["minilm"]["folder"] == str(cache / "models" / "minilm")
    assert models["smollm2-135m"]["folder"] is None
    text = CliRunner().invoke(app, ["list"]).stdout
    assert f"installed in {cache / 'models' / 'minilm'}" in text
    assert "not installed (92 MB to fetch)" in text


def test_installing_what_is_there_does_nothing(cache: Path) -> None:
    result = CliRunner().invoke(app, ["install", "minilm", "--json"])
    assert json.loads(result.stdout) == {"installed": {"minilm": str(cache / "models" / "minilm")}}


def test_a_wrong_name_is_said_before_anything_is_fetched() -> None:
    result = CliRunner().invoke(app, ["install", "smollm2-135m", "minilmm"])
    assert isinstance(result.exception, ModelError)
    assert "did you mean 'minilm'?" in str(result.exception)
    assert result.stderr == ""


def test_doctor_reports_versions_devices_models_and_extras() -> None:
    report = json.loads(CliRunner().invoke(doctor_app, ["--json"]).stdout)
    assert report["equipoise"] == __version__
    assert report["devices"][-1] == "cpu"
    assert report["threads"] >= 1
    assert report["models"]["smollm2-135m"] is None
    assert report["models"]["minilm"].endswith("minilm")
    assert report["extras"]["train"] == []
    text = CliRunner().invoke(doctor_app, []).stdout
    assert "smollm2-135m: missing; to get it: equipoise models install smollm2-135m" in text
    assert "train: complete" in text


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
import typer
from equipoise.cli.models import doctor
app = typer.Typer()
app.command()(doctor)
app()
"""


def test_doctor_works_without_torch() -> None:
    def doctor_without_torch(*flags: str) -> str:
        command = [sys.executable, "-c", WITHOUT_TORCH, *flags]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    report = json.loads(doctor_without_torch("--json"))
    assert (report["devices"], report["threads"]) == ([], None)
    assert report["extras"]["train"] == ["torch", "transformers"]
    text = doctor_without_torch()
    assert "none, torch is not installed" in text
    assert "train: missing torch, transformers; to get it: pip install 'equipoise[train]'" in text


def test_a_broken_torch_is_reported_and_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libfancy.so: cannot open shared object file')")
    script = WITHOUT_TORCH.replace('sys.modules["torch"] = sys.modules["transformers"] = None', "")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "cannot be imported: libfancy.so" in done.stdout


def test_models_are_merged_with_equal_weights_unless_told(tiny_llama: Path, tmp_path: Path) -> None:
    words = ["merge", str(tiny_llama), str(tiny_llama), "--out", str(tmp_path / "out"), "--json"]
    found = json.loads(CliRunner().invoke(app, words).stdout.splitlines()[-1])
    assert found["weights"] == [0.5, 0.5]
    ours, theirs = (load_file(place / "model.safetensors") for place in (tmp_path / "out", tiny_llama))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    result = CliRunner().invoke(app, [*words[:-1], "--weight", "0.9", "--weight", "0.9", "--force"])
    assert "sum to 1.8; expected 1" in str(result.exception)
