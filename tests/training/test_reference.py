"""What the reference says is asked once for all runs that ask the same, and never taken for another's."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from equipoise.config import parse_config
from equipoise.data.io import write_records
from equipoise.errors import ConfigError
from equipoise.lineage import produce
from equipoise.models.backbone import add_lora, load_causal
from equipoise.models.layout import Row, response_logps
from equipoise.records import Answer, Pair
from equipoise.training import reference
from equipoise.training.preference import TRAIN_PREFERENCE, PreferenceConfig
from equipoise.training.reference import ReferenceCache, hash_weights

ROWS = [Row([5, 6, 7], [[8, 9], [10]]), Row([5, 6], [[11, 12, 13], [14]])]
PAIRS = [
    Pair(
        id=name,
        prompt=f"how do i bake bread {name}",
        answers=(
            Answer(response=f"mix flour and water {name}", is_safe=name != "c"),
            Answer(response="wait until the dough has doubled", is_safe=True),
        ),
        better=0,
        licence="CC0-1.0",
    )
    for name in "abcd"
]
Train = Callable[..., Path]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many rows each forward pass for a reference had, in a cache of its own."""
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    found: list[int] = []
    computed = reference.response_logps

    def count(model: nn.Module, rows: list[Row]) -> Any:
        found.append(len(rows))
        return computed(model, rows)

    monkeypatch.setattr(reference, "response_logps", count)
    return found


@pytest.fixture
def train(tmp_path: Path, tiny_llama: Path) -> Train:
    """Train in a folder of its own and return what was written."""
    write_records(tmp_path / "pairs.jsonl", PAIRS)

    def run(name: str, **settings: Any) -> Path:
        given = {"pairs": [str(tmp_path / "pairs.jsonl")], "model": str(tiny_llama), "objective": "dpo"}
        given |= settings
        given["optim"] = {"device": "cpu", "epochs": 2, "lr": 1e-3} | given.get("optim", {})
        produce(tmp_path / name, TRAIN_PREFERENCE, parse_config(PreferenceConfig, given, name))
        return tmp_path / name

    return run


@pytest.mark.parametrize("settings", [{}, {"tune": "full"}, {"tune": "top", "top_layers": 1}])
def test_other_objectives_knobs_and_seeds_do_not_ask_again(
    train: Train, asked: list[int], settings: dict[str, Any]
) -> None:
    train("first", **settings)
    passes = len(asked)
    assert passes
    train("knob", objective_params={"beta": 0.5}, **settings)
    ours = train("ipo", objective="ipo", **settings)
    assert len(asked) == passes
    alone = train("alone", objective="ipo", keep_reference=False, **settings)
    assert len(asked) == 2 * passes
    train("seed", optim={"seed": 1, "lr": 1e-2}, **settings)
    # where the lower layers ran in the order of the training, last bits may hang on it
    assert len(asked) == (3 if settings.get("tune") == "top" else 2) * passes
    (weights,) = (path.name for path in ours.glob("*.safetensors"))
    mine, other = load_file(ours / weights), load_file(alone / weights)
    assert all(torch.equal(mine[name], other[name]) for name in other)
    assert (ours / "log.jsonl").read_text() == (alone / "log.jsonl").read_text()


def test_single_answers_and_those_that_they_borrow_are_told_apart(train: Train, asked: list[int]) -> None:
    train("first", objective="kto")
    passes = len(asked)
    train("again", objective="kto", optim={"lr": 1e-2})
    assert len(asked) == passes
    assert len(list((Path(os.environ["EQUIPOISE_CACHE"]) / "reference").iterdir())) == 2


def test_whatever_changes_a_number_has_a_file_of_its_own(
    tmp_path: Path, tiny_llama: Path, asked: list[int]
) -> None:
    model: Any = load_causal(tiny_llama, device="cpu").model
    told = {"tokens_per_batch": 64, "bf16": False}

    def ask(rows: list[Row] = ROWS, *, each_token: bool = False, **other: Any) -> int:
        """Files that there are after one more question."""
        ReferenceCache(tmp_path / "kept", model, **(told | other)).logps(model, rows, each_token=each_token)
        return len(list((tmp_path / "kept").iterdir()))

    assert ask() == ask() == 1
    assert ask(bf16=True) == 2
    assert ask(tokens_per_batch=5) == 3
    assert ask(top_layers=1) == 4
    assert ask(each_token=True) == 5
    assert ask(ROWS[:1]) == 6  # another company
    assert ask([ROWS[0], Row([5, 6], [[11, 12], [13, 14]])]) == 7
    assert ask(ROWS[::-1]) == 7
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert ask() == 8
    torch.set_num_threads(threads)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    assert ask() == 9
    model.config.rope_parameters["rope_theta"] *= 2
    assert ask() == 10


def test_weights_are_known_by_what_they_hold_not_by_their_place(tmp_path: Path, tiny_llama: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "copy")
    here, there = load_causal(tiny_llama, device="cpu").model, load_causal(tmp_path / "copy").model
    assert hash_weights(here) == hash_weights(there)
    half: Any = load_causal(tiny_llama, dtype="bfloat16", device="cpu").model
    assert hash_weights(half) != hash_weights(here)


def test_fresh_adapters_say_what_the_model_says(tmp_path: Path, tiny_llama: Path) -> None:
    backbone: Any = load_causal(tiny_llama, device="cpu")
    cache = ReferenceCache(tmp_path / "kept", backbone.model, tokens_per_batch=64, bf16=False)
    other = ReferenceCache(tmp_path / "other", backbone.model, tokens_per_batch=64, bf16=False)
    plain = cache.logps(backbone.model, ROWS)
    adapted = other.logps(add_lora(backbone.model, rank=4, alpha=8, dropout=0.0), ROWS)
    assert all(torch.equal(one, two) for one, two in zip(plain, adapted, strict=True))


def test_the_order_of_the_rows_is_that_of_the_caller(tmp_path: Path, tiny_llama: Path) -> None:
    model: Any = load_causal(tiny_llama, device="cpu").model
    cache = ReferenceCache(tmp_path, model, tokens_per_batch=64, bf16=False)
    ahead, back = cache.logps(model, ROWS), cache.logps(model, ROWS[::-1])
    direct = [response_logps(model, [row]).sums.detach() for row in ROWS]
    for one, other, alone in zip(ahead, back[::-1], direct, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, alone)


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_computed(
    train: Train, asked: list[int], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match=r"keep_reference: .*reference: .*; expected a folder that can be"):
        train("out")
    assert not asked
    train("out", keep_reference=False)


def test_objectives_without_a_reference_need_no_cache(train: Train, asked: list[int], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    train("out", objective="simpo")
    assert not asked


@pytest.mark.parametrize("broken", [b"", b"\x00" * 20, "short"])
def test_a_broken_file_is_told_and_made_again(
    train: Train, asked: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: bytes | str
) -> None:
    first = train("first")
    (kept,) = (tmp_path / "cache" / "reference").iterdir()
    whole = load_file(kept)["logps"].clone()
    if isinstance(broken, bytes):
        kept.write_bytes(broken)
    else:
        save_file({"logps": whole[1:].clone()}, kept)
    again = train("again")
    assert f"{kept}: broken, so the reference is asked again" in capsys.readouterr().err
    assert len(asked) == 2
    assert torch.equal(load_file(kept)["logps"], whole)
    assert (first / "log.jsonl").read_text() == (again / "log.jsonl").read_text()


def test_what_cannot_be_kept_is_told_and_used(
    tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Any = load_causal(tiny_llama, device="cpu").model
    cache = ReferenceCache(tmp_path / "kept", model, tokens_per_batch=64, bf16=False)
    expected = cache.logps(model, ROWS)

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(reference, "save_tensors", full)
    other = ReferenceCache(tmp_path / "other", model, tokens_per_batch=64, bf16=False)
    found = other.logps(model, ROWS)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    assert "No space left on device, so what the reference says is not kept" in capsys.readouterr().err


def test_what_is_read_does_not_hang_on_the_file(tmp_path: Path, tiny_llama: Path) -> None:
    model: Any = load_causal(tiny_llama, device="cpu").model
    cache = ReferenceCache(tmp_path, model, tokens_per_batch=64, bf16=False)
    cache.logps(model, ROWS)
    found = cache.logps(model, ROWS)
    (kept,) = tmp_path.iterdir()
    before = [one.clone() for one in found]
    kept.write_bytes(b"\x00" * kept.stat().st_size)
    assert all(torch.equal(one, two) for one, two in zip(before, found, strict=True))


def test_a_process_that_has_the_numbers_does_not_wait_for_one_that_has_not(
    tmp_path: Path, tiny_llama: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_causal(tiny_llama, device="cpu").model
    cache = ReferenceCache(tmp_path / "kept", model, tokens_per_batch=64, bf16=False)
    known = cache.logps(model, ROWS)
    assert len(asked) == 1
    monkeypatch.setattr(reference, "_in_all_processes", lambda here: False)
    again = cache.logps(model, ROWS)
    assert len(asked) == 2
    assert all(torch.equal(one, two) for one, two in zip(known, again, strict=True))
