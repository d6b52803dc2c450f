"""What the benchmarks of trainings compute: marks, arithmetic, padding, ratios; against plain numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from equipoise.models.layout import Row, response_logps

ROWS = [Row([5, 6, 7], [[8, 9], [10, 11, 12, 13]]), Row([5], [[8], [9, 10]])]


@pytest.fixture(scope="module")
def scripts(load_scripts: Any) -> dict[str, Any]:
    return load_scripts("common", "side_rows", "sides", "race", "scorer")


def test_marks_tell_a_pass_without_gradients_from_the_steps(scripts: dict[str, Any], tmp_path: Path) -> None:
    embedding, head = nn.Embedding(4, 3), nn.Linear(3, 1)
    optimizer = torch.optim.SGD([*embedding.parameters(), *head.parameters()], lr=0.1)
    ids = torch.tensor([1, 2])
    with scripts["sides"].Watch(tmp_path / "gradients.pt") as watch:
        with torch.no_grad():
            embedding(ids)
        for _ in range(3):
            head(embedding(ids)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    embedding(ids)
    optimizer.step()
    told = watch.told()
    assert told["steps"] == 3
    assert told["before"].wall > 0
    assert told["during"].wall > 0
    assert watch.first.wall < watch.learning.wall < watch.last.wall
    of_embedding, of_weight, of_bias = torch.load(tmp_path / "gradients.pt")
    assert of_bias.tolist() == [2.0]  # two rows, each with a gradient of 1
    assert of_embedding[0].tolist() == [0.0, 0.0, 0.0]
    assert of_weight.shape == (1, 3)


def test_layers_that_are_frozen_count_as_a_pass_before_the_steps(scripts: dict[str, Any]) -> None:
    embedding, head = nn.Embedding(4, 3), nn.Linear(3, 1)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    with scripts["sides"].Watch() as watch:
        with torch.no_grad():
            features = embedding(torch.tensor([1, 2]))
        head(features).sum().backward()
        optimizer.step()
    assert watch.told()["steps"] == 1
    assert watch.told()["before"].wall > 0


def test_the_arithmetic_is_what_the_products_of_one_pass_take(
    scripts: dict[str, Any], tiny_llama: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for row in ROWS:
            response_logps(model, [row])
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for name, n in counts.items() if name in (torch.ops.aten.mm, torch.ops.aten.addmm))
    # prompt sees 6 and 1; the responses, of 2 and 4 tokens behind 3, and of 1 and 2 behind 1
    seen = 6 + (2 * 3 + 3) + (4 * 3 + 10) + 1 + (1 + 1) + (2 * 1 + 3)
    attention = 4 * 2 * 32 * seen  # two layers of width 32
    found = scripts["side_rows"].forward_flop
    assert found(tiny_llama, ROWS) == products + attention
    head = 2 * model.lm_head.weight.numel() * 9  # response tokens
    assert found(tiny_llama, ROWS, head=False) == products + attention - head


def test_padding_is_to_the_longest_prompt_with_a_response_of_a_batch(scripts: dict[str, Any]) -> None:
    padded_to = scripts["side_rows"].padded_to
    assert padded_to(ROWS, 2) == 4 * 7
    assert padded_to(ROWS, 1) == 2 * 7 + 2 * 3


def run_of(before: float, during: float, memory: float) -> dict[str, Any]:
    return {"before": [2 * before, before], "during": [2 * during, during], "own_mib": memory}


def test_ratios_are_taken_round_by_round_for_three_epochs(scripts: dict[str, Any]) -> None:
    runs = {
        "ours": [run_of(10, 20, 100), run_of(10, 30, 100)],  # 10 + 3 * 20 = 70, and 100
        "peer": [run_of(0, 70, 400), run_of(0, 50, 500)],  # 210 and 150
    }
    found = scripts["race"].compared(runs, ["ours"], 1)["ours"]["peer"]
    assert found["times_per_cpu_second"] == {"median": 2.25, "range": [1.5, 3.0]}
    assert found["times_on_the_wall"] == {"median": 2.25, "range": [1.5, 3.0]}
    assert found["memory"] == {"median": 0.23, "range": [0.2, 0.25]}


def test_of_three_measured_epochs_each_counts_once(scripts: dict[str, Any]) -> None:
    assert scripts["race"].taken(run_of(10, 60, 1), 3) == (140, 70)


def test_rates_count_each_token_once_an_epoch(scripts: dict[str, Any]) -> None:
    run = {**run_of(10, 20, 100), "steps": 2, "losses": [0.7, 0.6]}
    found = scripts["race"].told([run], {"epochs": 1}, tokens=700, flop=14e9, gflops=[1.0])
    assert found["data_tokens_per_cpu_second"]["median"] == 30.0  # 2,100 in 70 s
    assert found["share_of_the_arithmetic_limit"]["median"] == 0.1  # 14 s of 140 on the wall
    assert found["last_loss"] == 0.6


def test_every_round_begins_with_another_side(scripts: dict[str, Any]) -> None:
    seen: list[str] = []

    def run(side: str) -> dict[str, Any]:
        seen.append(side)
        return run_of(1, 1, 1)

    found = scripts["sides"].in_turns(["a", "b", "c"], 2, run)
    assert seen == ["a", "b", "c", "b", "c", "a"]
    assert {side: len(runs) for side, runs in found.items()} == {"a": 2, "b": 2, "c": 2}


def test_two_runs_of_a_peer_are_one_after_the_other(scripts: dict[str, Any]) -> None:
    one, two = ({**run_of(1, n, 10 * n), "steps": n, "losses": []} for n in (3, 4))
    found = scripts["scorer"].both([one, two])
    assert (found["before"], found["during"], found["steps"]) == ([4, 2], [14, 7], 7)
    assert found["own_mib"] == 40


def test_differences_are_relative_to_the_peer(scripts: dict[str, Any]) -> None:
    race = scripts["race"]
    assert race.largest_difference([1.0, 3.0], [2.0, 4.0]) == 0.5
    found = race.gradient_difference(
        [torch.tensor([3.0, 0.0]), torch.ones(1)], [torch.tensor([0.0, 4.0]), torch.ones(1)]
    )
    assert found == pytest.approx({"all": 5 / 17**0.5, "worst_tensor": 1.25})
