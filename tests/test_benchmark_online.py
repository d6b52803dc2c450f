"""Online training beside TRL: both sides learn the same of one batch, and what is told of times is right."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from equipoise.records import Exchange

NAMES = ("common", "side_rows", "sides", "race", "online_sides", "online")
OURS, PEER, WHOLE, CONTINUOUS = "equipoise", "trl", "trl, whole rollouts", "trl, continuous batches"


@pytest.fixture(scope="module")
def scripts(load_scripts: Any) -> dict[str, Any]:
    return load_scripts(*NAMES)


@pytest.fixture
def job(tmp_path: Path, tiny_llama: Path, scripts: dict[str, Any]) -> dict[str, Any]:
    told = ["--model", str(tiny_llama), "--prompts", "5", "--samples", "4", "--new", "12", "--updates", "2"]
    args = scripts["online"].arguments().parse_args([*told, "--rank", "4", "--tokens", "300"])
    return {**scripts["online"].job_of(args, tmp_path), "folder": str(tmp_path)}


def run_of(before: float, during: float, lengths: list[int], memory: float = 100) -> dict[str, Any]:
    seen = {"rewards": [0.5], "costs": [0.1], "multipliers": [1.0], "lengths": lengths, "writing": before}
    return {"before": [2 * before, before], "during": [2 * during, during], "own_mib": memory, **seen}


def test_rates_count_the_responses_of_all_updates(scripts: dict[str, Any]) -> None:
    found = scripts["online"].told([run_of(10, 30, [60, 40])], 20)
    assert found["samples_per_cpu_second"]["median"] == 0.5  # 20 in 40 s
    assert found["samples_per_second"]["median"] == 0.25
    assert found["tokens_per_cpu_second"]["median"] == 2.5
    assert found["tokens_of_a_response"]["median"] == 5
    assert found["share_of_writing"]["median"] == 0.12  # 10 of 80 s on the wall


def test_peers_are_compared_round_by_round(scripts: dict[str, Any]) -> None:
    ours = [run_of(10, 30, [100]), run_of(10, 40, [100])]
    peer = [run_of(20, 60, [50], 200), run_of(40, 60, [200], 400)]
    found = scripts["online"].compared({OURS: ours, PEER: peer})[PEER]
    assert found["times_per_cpu_second"] == {"median": 2.0, "range": [2.0, 2.0]}
    assert found["times_per_cpu_second_in_tokens"] == {"median": 2.5, "range": [1.0, 4.0]}
    assert found["memory"] == {"median": 0.38, "range": [0.25, 0.5]}


def test_both_sides_score_a_text_alike(scripts: dict[str, Any]) -> None:
    sides = scripts["online_sides"]
    texts = ["bread and bread", "", "the dough"]
    exchanges = [Exchange(id=str(i), prompt="how", response=text) for i, text in enumerate(texts)]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    held = sides.Held()
    rewards = held.reward(completions, [[5], [6, 7], [8]])
    costs = held.cost(completions)
    assert rewards == sides.reward(exchanges) == [2 / 3, 0, 1]
    assert costs == sides.cost(exchanges) == pytest.approx([20 / 15 - 0.9, 0, 10 / 9 - 0.9])
    assert held.seen["lengths"] == [4]
    assert held.seen["costs"] == pytest.approx([math.fsum(costs) / 3])


def test_weights_are_those_of_the_blend(scripts: dict[str, Any]) -> None:
    assert scripts["online_sides"].weights_of(3.0) == [0.25, -0.75]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mean_over", ["tokens", "responses"])
def test_one_batch_has_one_loss_and_one_gradient(
    mean_over: str, scripts: dict[str, Any], job: dict[str, Any]
) -> None:
    pytest.importorskip("trl", minversion="1.16")
    online = scripts["online"]
    found = online.differences({**job, **online.STILL, "mean_over": mean_over})
    assert found["loss"]["relative"] < 1e-5
    assert found["gradient_norm"]["relative"] < 1e-5
    assert found["gradient"]["all"] < 1e-4
    assert found["clipped"][OURS] == pytest.approx(found["clipped"][PEER])
    assert 0 < found["clipped"][OURS] < 0.5  # the bound acts
    assert found["kl"] > 0.001
    assert found["multiplier"] != 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", [OURS, PEER, WHOLE, CONTINUOUS])
def test_every_side_takes_a_step_of_every_rollout(
    side: str, scripts: dict[str, Any], job: dict[str, Any]
) -> None:
    pytest.importorskip("trl", minversion="1.16")
    training = scripts["online"].training_of(side, job)
    with scripts["sides"].Watch() as watch:
        losses = training()
    assert watch.steps == len(losses) == 2
    told = json.loads((Path(job["folder"]) / "told.json").read_text("utf-8"))
    assert all(20 <= length <= 20 * 12 for length in told["lengths"])
    assert {len(told[name]) for name in ("lengths", "rewards", "costs", "multipliers")} == {2}
    moved = 1 + 0.1 * told["costs"][0]
    assert told["multipliers"] == pytest.approx([moved, moved + 0.1 * told["costs"][1]], abs=1e-6)
    assert told["writing"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_both_sides_answer_the_same_prompts_in_the_same_order(
    scripts: dict[str, Any], job: dict[str, Any]
) -> None:
    pytest.importorskip("trl", minversion="1.16")
    online = scripts["online"]
    _, batch, _ = online.our_step({**job, **online.STILL})
    trainer = scripts["online_sides"].prepared(job, batch=4)([0.5, -0.5], [lambda **_: []] * 2)
    asked = [row["prompt"] for row in trainer.train_dataset][: job["prompts"]]
    ids = trainer._tokenize_prompts(asked)[0]
    assert ids == [row.prompt for row in batch.experience.rows]
    assert len(trainer.train_dataset) == 10
