"""KTO: whose responses a prompt borrows, a baseline that no split can change, and SACPO as two runs."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.data.io import write_records
from equipoise.errors import DataError
from equipoise.lineage import Outcome, produce
from equipoise.models.layout import Row
from equipoise.records import Answer, Pair
from equipoise.training.pair_order import LabelledRow
from equipoise.training.preference import TRAIN_PREFERENCE, PreferenceConfig, PreferenceOptim
from equipoise.training.unpaired import borrowed_rows


def rows(*prompts: int) -> list[LabelledRow]:
    """Row i has the given prompt and one response, [100 + i]."""
    return [LabelledRow(Row([p], [[100 + i]]), (True,), 1.0) for i, p in enumerate(prompts)]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ((1, 2, 3), [102, 100, 101]),  # the one before, in a circle
        ((1, 1, 2, 2), [103, 103, 101, 101]),  # never a response to the same prompt
        ((1, 2, 2, 1), [102, 100, 100, 102]),
    ],
)
def test_a_prompt_borrows_from_the_nearest_row_before_with_another_prompt(
    prompts: tuple[int, ...], expected: list[int]
) -> None:
    labelled = rows(*prompts)
    kept, found = borrowed_rows(labelled)
    assert kept == labelled
    assert [row.prompt for row in found] == [[p] for p in prompts]
    assert [row.responses for row in found] == [[[token]] for token in expected]


def test_one_prompt_alone_cannot_borrow() -> None:
    with pytest.raises(DataError, match="expected at least two prompts"):
        borrowed_rows(rows(1, 1, 1))


def test_what_is_borrowed_keeps_within_the_tokens_of_a_row() -> None:
    def row(prompt: int, response: int) -> LabelledRow:
        return LabelledRow(Row([prompt] * prompt, [[100 + prompt] * response]), (True,), 1.0)

    short, middle, long, asked = row(1, 2), row(2, 4), row(3, 7), row(7, 3)
    labelled = [short, middle, long, asked]
    assert all(one.row.length <= 10 for one in labelled)
    kept, found = borrowed_rows(labelled, max_tokens=10)
    # the prompt of 7 passes over 7 tokens and 4; that of 3 stands behind 4; 2 and 1 go round as ever
    assert kept == labelled
    assert [one.responses[0][0] for one in found] == [107, 101, 102, 101]
    assert max(one.length for one in found) <= 10

    kept, found = borrowed_rows([short, middle, long, row(9, 1)], max_tokens=10)
    assert kept == [short, middle, long]  # a prompt of 9 tokens has no place for 2
    assert [one.responses[0][0] for one in found] == [109, 101, 102]  # and still lends


PAIRS = [
    Pair(
        id=name,
        prompt=f"how do i bake bread {name}",
        answers=(
            Answer(response="mix flour and water", is_safe=safe[0]),
            Answer(response="wait until the dough has doubled", is_safe=safe[1]),
        ),
        better=better,
        licence="CC0-1.0",
    )
    for name, better, safe in [
        ("a", 0, (True, True)),
        ("b", 1, (True, True)),
        ("c", 0, (False, True)),
        ("d", 0, (None, False)),
    ]
]


def train(place: Path, model: Path, **settings: Any) -> Outcome:
    place.mkdir(exist_ok=True)
    write_records(place / "pairs.jsonl", PAIRS)
    optim = PreferenceOptim(**({"device": "cpu", "batch_size": 8} | settings.pop("optim", {})))
    config = PreferenceConfig(pairs=(place / "pairs.jsonl",), model=str(model), optim=optim, **settings)
    return produce(place / "out", TRAIN_PREFERENCE, config)


def log_of(place: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (place / "out" / "log.jsonl").read_text().splitlines()]


def test_kto_learns_and_no_split_of_a_step_changes_its_numbers(tmp_path: Path, tiny_llama: Path) -> None:
    logs = []
    for name, tokens in (("whole", 100_000), ("split", 1)):
        optim = {"lr": 1e-2, "epochs": 4, "schedule": "constant", "tokens_per_micro_batch": tokens}
        done = train(tmp_path / name, tiny_llama, objective="kto", optim=optim)
        assert (done.manifest.notes["desirable"], done.manifest.notes["undesirable"]) == (4, 4)
        logs.append(log_of(tmp_path / name))
    whole, split = logs
    assert whole[0]["loss"] == pytest.approx(0.5, abs=1e-5)  # as long as the policy is its reference
    assert whole[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert whole[-1]["loss"] < 0.499
    assert whole[-1]["desirable_reward"] > whole[-1]["undesirable_reward"] + 0.01
    for mine, other in zip(whole, split, strict=True):
        for key in ("loss", "kl", "desirable_reward", "undesirable_reward"):
            assert mine[key] == pytest.approx(other[key], rel=1e-3, abs=2e-4)


def one_step(out: Path, model: Path, processes: int) -> list[dict[str, torch.Tensor]]:
    """Gradient and baseline of the same step of KTO, as each of some processes has them."""
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("two_ranks_kto.py")), str(model), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(out / f"step-{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_share_the_baseline_and_take_the_step_of_one(tmp_path: Path, tiny_llama: Path) -> None:
    (alone,) = one_step(tmp_path / "one", tiny_llama, 1)
    assert alone["baseline"].item() > 0.1
    for rank in one_step(tmp_path / "two", tiny_llama, 2):
        assert rank["baseline"].item() == pytest.approx(alone["baseline"].item(), rel=1e-9)
        off = (rank["gradient"] - alone["gradient"]).abs().max()
        assert off <= 1e-6 * alone["gradient"].abs().max()


def test_sacpo_is_two_runs_the_second_from_and_against_the_first(tmp_path: Path, tiny_llama: Path) -> None:
    """Helpfulness first, then safety with the result as start and as reference (Wachi et al. 2024)."""
    optim = {"lr": 1e-2, "epochs": 4, "schedule": "constant"}
    train(tmp_path / "helpful", tiny_llama, objective="dpo", optim=optim)
    assert log_of(tmp_path / "helpful")[-1]["reward_margin"] > 0.05
    done = train(tmp_path / "safe", tmp_path / "helpful" / "out", objective="kto", preference="is_safe")
    assert (done.manifest.notes["desirable"], done.manifest.notes["undesirable"]) == (5, 2)
    (first,) = log_of(tmp_path / "safe")
    assert first["loss"] == pytest.approx(0.5, abs=1e-5)
    assert [first[key] for key in ("kl", "desirable_reward", "undesirable_reward")] == pytest.approx(
        [0.0, 0.0, 0.0], abs=1e-3
    )
    assert math.isfinite(sum(p.sum().item() for p in _adapter(tmp_path / "safe" / "out")))


def _adapter(folder: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return list(load_file(folder / "adapter_model.safetensors").values())
