"""`equipoise train ...` as a user types it, on tiny models."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import Result

from equipoise.config import read_yaml
from equipoise.data.io import write_records
from equipoise.errors import ConfigError, DataError, EquipoiseError
from equipoise.models.backbone import load_causal
from equipoise.moderation.guard import load_guard
from equipoise.records import Answer, Exchange, Pair
from equipoise.rewards.learned import load_scorer

SECRET = "marmalade"
Call = Callable[..., Result]


@pytest.fixture
def call(call: Call) -> Call:
    """Run a command that must succeed; no text of the data may show."""

    def run(*words: object) -> Result:
        result = call(*words)
        assert result.exit_code == 0, result.output
        assert SECRET not in result.output
        return result

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    exchanges = [
        Exchange(
            id=f"e{i}",
            prompt=f"ask for {SECRET} {i}",
            response="no" if i % 2 else "yes",
            is_safe=not i % 2,
            licence="CC0-1.0",
        )
        for i in range(6)
    ]
    answers = (Answer(response="yes", is_safe=True), Answer(response="no no", is_safe=False))
    pairs = [
        Pair(id=f"p{i}", prompt=f"ask for {SECRET} {i}", answers=answers, better=i % 2, licence="MIT")
        for i in range(4)
    ]
    write_records(place / "e.jsonl", exchanges)
    write_records(place / "p.jsonl", pairs)
    return place


# command -> (file, setting that names the model, model, more settings, rows it is trained on)
COMMANDS: dict[str, tuple[str, str, str, list[str], int]] = {
    "guard": ("e.jsonl", "backbone", "tiny_encoder", ["layers=2", "hidden=4", "optim.epochs=1"], 6),
    "scorer": ("p.jsonl", "backbone", "tiny_encoder", ["layers=2", "hidden=4", "optim.epochs=1"], 4),
    "sft": ("e.jsonl", "model", "tiny_llama", ["lora.rank=2"], 3),
    "preference": ("p.jsonl", "model", "tiny_llama", ["lora.rank=2", "objective_params.beta=0.3"], 4),
}


def words_for(name: str, data: Path, out: Path, request: pytest.FixtureRequest) -> list[object]:
    file, setting, model, settings, _ = COMMANDS[name]
    where = request.getfixturevalue(model)
    sets = [word for item in [f"{setting}={where}", *settings] for word in ("--set", item)]
    return ["train", name, "--data", data / file, "--out", out, *sets]


def load(name: str, folder: Path) -> Any:
    loaders: dict[str, Any] = {"guard": load_guard, "scorer": load_scorer}
    return loaders.get(name, load_causal)(folder, device="cpu")


@pytest.mark.parametrize("name", COMMANDS)
def test_training_prints_one_object_and_writes_what_loads(
    call: Call, name: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = words_for(name, data, tmp_path / "out", request)
    first = json.loads(call(*words, "--json").stdout)
    assert first["out"] == str(tmp_path / "out")
    assert first["skipped"] is False
    assert first["notes"]["rows"] == COMMANDS[name][4]
    assert load(name, tmp_path / "out")
    files = {f.name for f in (tmp_path / "out").iterdir()}
    assert {"manifest.json", "config.yaml", "card.md", "log.jsonl"} <= files
    assert not files & {"scratch", "started.json"}

    second = json.loads(call(*words, "--json").stdout)
    assert second == first | {"skipped": True}
    assert "was done before" in call(*words).stdout

    with pytest.raises(ConfigError, match="holds another run"):
        call(*words, "--set", "optim.seed=5")
    third = json.loads(call(*words, "--set", "optim.seed=5", "--force", "--json").stdout)
    assert third["skipped"] is False
    assert third["key"] != first["key"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_resolved_settings_repeat_the_run(
    call: Call, name: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = json.loads(call(*words_for(name, data, tmp_path / "a", request), "--json").stdout)
    again = ["train", name, "--config", tmp_path / "a" / "config.yaml", "--out", tmp_path / "b", "--json"]
    second = json.loads(call(*again).stdout)
    assert second["key"] == first["key"]
    logs = [(tmp_path / place / "log.jsonl").read_text().splitlines() for place in ("a", "b")]
    assert [json.loads(line)["loss"] for line in logs[0]] == [json.loads(line)["loss"] for line in logs[1]]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("optim.lrr=1", r"optim\.lrr: no such setting \(did you mean 'lr'\?\)"),
        ("optim.epochs=0", r"optim\.epochs: .*, got 0"),
        ("optim", "expected key=value"),
    ],
)
def test_a_mistake_in_a_setting_is_one_line(
    *,
    call: Call,
    name: str,
    setting: str,
    says: str,
    data: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        call(*words_for(name, data, tmp_path / "out", request), "--set", setting)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_is_not_there_or_of_another_kind_is_named(
    call: Call, name: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    words = words_for(name, data, tmp_path / "out", request)
    other = data / ("p.jsonl" if COMMANDS[name][0] == "e.jsonl" else "e.jsonl")
    for path, kind in ((tmp_path / "none.jsonl", EquipoiseError), (other, DataError)):
        words[words.index("--data") + 1] = path
        with pytest.raises(kind, match=path.name) as caught:
            call(*words)
        assert "\n" not in str(caught.value)
        assert SECRET not in str(caught.value)


def test_settings_come_from_default_file_option_and_override(
    call: Call, data: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: {tiny_llama}\nmax_tokens: 99\noptim: {{lr: 1e-5, seed: 3}}\nexchanges: [x]\n")
    words = ["--config", path, "--data", data / "e.jsonl", "--set", "optim.lr=2e-5"]
    call("train", "sft", *words, "--out", tmp_path / "out")
    found = read_yaml(tmp_path / "out" / "config.yaml")
    assert found["exchanges"] == [str(data / "e.jsonl")]
    assert found["max_tokens"] == 99
    assert (found["optim"]["lr"], found["optim"]["seed"], found["optim"]["epochs"]) == (2e-5, 3, 1)


def test_a_mixture_is_trained_on_pairs(call: Call, data: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    sets = (f"backbone={tiny_encoder}", "layers=2", "unit=pair", "restarts=1")
    words = ["train", "mixture", "--data", data / "p.jsonl", "--out", tmp_path / "out"]
    found = json.loads(call(*words, *(w for s in sets for w in ("--set", s)), "--json").stdout)
    assert found["out"] == str(tmp_path / "out")
    assert (tmp_path / "out" / "card.md").is_file()


@pytest.mark.parametrize("limit", [60_000, 200_000], ids=["safetensors", "the state of the optimiser"])
def test_a_full_disk_is_one_line_and_costs_nothing(
    data: Path, tiny_llama: Path, tmp_path: Path, limit: int
) -> None:
    def train(place: str, most: int | None = None) -> subprocess.CompletedProcess[str]:
        words = ["train", "sft", "--data", data / "e.jsonl", "--out", tmp_path / place]
        settings = [f"model={tiny_llama}", "tune=full", "optim.device=cpu", "optim.checkpoint_every=1"]
        sets = [part for setting in (*settings, "optim.batch_size=1") for part in ("--set", setting)]
        limit_it = (
            "" if most is None else f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({most}, {most})); "
        )
        script = limit_it + "from equipoise.cli.main import main; main()"
        command = [sys.executable, "-c", script, *map(str, words), *sets]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    full = train("out", limit)
    assert full.returncode == 3, full.stderr
    assert full.stderr.splitlines()[-1].startswith("stopped: disk: ")
    assert full.stderr.splitlines()[-1].endswith("; the same command resumes")
    assert "Traceback" not in full.stderr
    for place in ("out", "whole"):
        assert train(place).returncode == 0
    ours, theirs = (load_file(tmp_path / place / "model.safetensors") for place in ("out", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
