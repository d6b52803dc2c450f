"""Pseudo-preferences under a budget: what is found, what is drawn, and what is refused."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from equipoise.data.io import read_records, write_records
from equipoise.errors import DataError
from equipoise.lineage import produce
from equipoise.objectives.constraints import solve_dual
from equipoise.pipeline.one_shot import ONE_SHOT, OneShotConfig, read_scored
from equipoise.records import Pair

REWARD = torch.tensor([[2.0, 0.0, 1.0, -1.0], [1.0, 0.5, 0.0, -0.5]], dtype=torch.float64)
COST = torch.tensor([[1.0, -1.0, 0.5, -2.0], [2.0, -0.5, 0.0, -1.0]], dtype=torch.float64)


def rows() -> list[dict[str, object]]:
    return [
        {
            "id": f"p{p}",
            "prompt": f"question {p}",
            "licence": "CC0-1.0",
            "response": f"answer {p} {k}",
            "model": "m",
            "sample": k,
            "reward": REWARD[p, k].item(),
            "cost": COST[p, k].item(),
        }
        for k in range(4)
        for p in range(2)
    ]


def write(path: Path, lines: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_pairs_follow_the_multiplier_that_keeps_the_budget(tmp_path: Path) -> None:
    scored = write(tmp_path / "scored.jsonl", [*rows(), {"id": "p0", "error": "no answer"}])
    config = OneShotConfig(scored=scored, budget=-0.5, beta=0.5, pairs_per_prompt=9)
    notes = produce(tmp_path / "pairs.jsonl", ONE_SHOT, config).manifest.notes
    expected = solve_dual(REWARD, COST, budget=-0.5, beta=0.5)
    assert notes["multiplier"] == pytest.approx(expected.multiplier, abs=1e-6)
    assert (notes["constraint"], notes["cost_expected"]) == ("active", pytest.approx(-0.5, abs=1e-6))
    assert notes["cost_of_reference"] == pytest.approx(COST.mean().item(), abs=1e-6)
    assert (notes["prompts"], notes["responses"], notes["pairs"]) == (2, 4, 4)
    assert notes["left_out"] == {"error": 1, "prompts with fewer responses": 0}

    pairs = list(read_records(tmp_path / "pairs.jsonl", Pair))
    assert {pair.licence for pair in pairs} == {"CC0-1.0"}
    used = [answer.response for pair in pairs for answer in pair.answers]
    assert sorted(used) == sorted(str(row["response"]) for row in rows())
    for pair in pairs:
        p = int(pair.id[1])
        total = [
            REWARD[p, int(a.response[-1])] - expected.multiplier * COST[p, int(a.response[-1])]
            for a in pair.answers
        ]
        assert pair.provenance["lagrangian"] == pytest.approx([t.item() for t in total], abs=1e-5)
        assert pair.overall in (0, 1)


def test_preferences_are_drawn_with_the_probability_of_the_gap(tmp_path: Path) -> None:
    two = [
        {"id": f"p{p}", "prompt": "q", "response": name, "reward": reward, "cost": cost}
        for p in range(3000)
        for name, reward, cost in (("a", 1.0, 1.0), ("b", 0.0, -0.5))
    ]
    config = OneShotConfig(scored=write(tmp_path / "scored.jsonl", two), multiplier=2.0)
    notes = produce(tmp_path / "pairs.jsonl", ONE_SHOT, config).manifest.notes
    assert (notes["constraint"], notes["multiplier"]) == ("given", 2.0)
    pairs = list(read_records(tmp_path / "pairs.jsonl", Pair))
    wins = Counter(pair.answers[int(str(pair.overall))].response for pair in pairs)
    assert wins["a"] / 3000 == pytest.approx(1 / (1 + math.exp(2.0)), abs=0.025)
    firsts = Counter(pair.answers[0].response for pair in pairs)
    assert firsts["a"] / 3000 == pytest.approx(0.5, abs=0.04)


def policy_rows(costs: dict[str, list[float]]) -> list[dict[str, object]]:
    """What the policy after a round says, with its costs."""
    return [
        {"id": name, "prompt": "q", "response": "a", "sample": k, "reward": 0.0, "cost": cost}
        for name, own in costs.items()
        for k, cost in enumerate(own)
    ]


def test_constrained_dpo_goes_on_from_the_last_multiplier(tmp_path: Path) -> None:
    scored = write(tmp_path / "scored.jsonl", rows())
    first, second, third = (tmp_path / f"{name}.jsonl" for name in ("first", "second", "third"))
    produce(first, ONE_SHOT, OneShotConfig(scored=scored, multiplier=0.3))
    # every prompt counts alike: (2 + (0 + 1) / 2) / 2 = 1.25, with budget 1 that is .25 too much
    dear = write(
        tmp_path / "dear.jsonl", [*policy_rows({"p": [2.0], "q": [0.0, 1.0]}), {"id": "z", "error": "!"}]
    )
    told = {"before": first, "scored": dear, "lr": 2.0}
    notes = produce(second, ONE_SHOT, OneShotConfig(scored=scored, budget=1.0, ascend=told)).manifest.notes
    assert notes["multiplier"] == pytest.approx(0.3 + 2.0 * 0.25)
    assert (notes["multiplier_before"], notes["cost_of_policy"]) == (pytest.approx(0.3), 1.25)
    assert notes["constraint"] == "given"
    # and down, but not below 0, where the policy keeps more than the budget
    cheap = write(tmp_path / "cheap.jsonl", policy_rows({"p": [-4.0]}))
    told = {"before": second, "scored": cheap}
    notes = produce(third, ONE_SHOT, OneShotConfig(scored=scored, budget=1.0, ascend=told)).manifest.notes
    assert (notes["multiplier"], notes["multiplier_before"]) == (0.0, pytest.approx(0.8))
    pair = next(iter(read_records(second, Pair)))
    p, (one, two) = int(pair.id[1]), (int(answer.response[-1]) for answer in pair.answers)
    assert pair.provenance["lagrangian"] == pytest.approx(
        [REWARD[p, k].item() - 0.8 * COST[p, k].item() for k in (one, two)], abs=1e-5
    )


def test_rounds_of_ascent_come_to_the_multiplier_that_is_solved_for(tmp_path: Path) -> None:
    """With the best policy's cost for what is measured, ascent ends where the dual is least."""
    scored = write(tmp_path / "scored.jsonl", rows())
    expected = solve_dual(REWARD, COST, budget=-0.5, beta=0.5)
    last = tmp_path / "0.jsonl"
    notes = produce(last, ONE_SHOT, OneShotConfig(scored=scored, beta=0.5, multiplier=0.0)).manifest.notes
    for number in range(1, 60):
        costs = write(
            tmp_path / f"costs-{number}.jsonl", policy_rows({"p": [float(str(notes["cost_expected"]))]})
        )
        config = OneShotConfig(
            scored=scored, beta=0.5, budget=-0.5, ascend={"before": last, "scored": costs, "lr": 0.5}
        )
        last = tmp_path / f"{number}.jsonl"
        notes = produce(last, ONE_SHOT, config).manifest.notes
    assert notes["multiplier"] == pytest.approx(expected.multiplier, abs=1e-3)


def test_what_is_no_earlier_round_is_named(tmp_path: Path) -> None:
    scored = write(tmp_path / "scored.jsonl", rows())
    pair = Pair(id="a", prompt="q", answers=({"response": "x"}, {"response": "y"}), overall=0)
    write_records(tmp_path / "pairs.jsonl", [pair])
    told = {"before": tmp_path / "pairs.jsonl", "scored": scored}
    with pytest.raises(
        DataError, match=r"pairs.jsonl: its first pair tells no multiplier; expected pairs of"
    ):
        produce(tmp_path / "out.jsonl", ONE_SHOT, OneShotConfig(scored=scored, ascend=told))
    produce(tmp_path / "first.jsonl", ONE_SHOT, OneShotConfig(scored=scored))
    empty = write(tmp_path / "empty.jsonl", [{"id": "p0", "error": "no answer"}])
    told = {"before": tmp_path / "first.jsonl", "scored": empty}
    with pytest.raises(DataError, match=r"empty.jsonl: no row has a response; expected rows of `score`"):
        produce(tmp_path / "out.jsonl", ONE_SHOT, OneShotConfig(scored=scored, ascend=told))
    nameless = write(tmp_path / "nameless.jsonl", [{"prompt": "q", "response": "a", "reward": 0, "cost": 1}])
    told = {"before": tmp_path / "first.jsonl", "scored": nameless}
    with pytest.raises(DataError, match=r"nameless.jsonl:1: id: "):
        produce(tmp_path / "out.jsonl", ONE_SHOT, OneShotConfig(scored=scored, ascend=told))
    with pytest.raises(ValueError, match="multiplier: got one and ascend; expected one of them"):
        OneShotConfig(scored=scored, multiplier=1.0, ascend=told)


def test_a_budget_that_no_response_keeps_is_named(tmp_path: Path) -> None:
    config = OneShotConfig(scored=write(tmp_path / "scored.jsonl", rows()), budget=-1.6)
    with pytest.raises(DataError, match=r"budget: got -1.6, but the cheapest responses cost -1.5 on average"):
        produce(tmp_path / "pairs.jsonl", ONE_SHOT, config)


def test_rows_without_scores_and_files_without_siblings_are_named(tmp_path: Path) -> None:
    bare = rows()
    bare[2]["cost"] = None
    with pytest.raises(DataError, match=r"bare.jsonl:3: expected a prompt with response, reward and cost"):
        read_scored(write(tmp_path / "bare.jsonl", bare), Counter())
    with pytest.raises(DataError, match=r"single.jsonl: no prompt has two responses"):
        read_scored(write(tmp_path / "single.jsonl", rows()[:2]), Counter())


def test_prompts_with_fewer_responses_are_left_out_and_counted(tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    asked = read_scored(write(tmp_path / "scored.jsonl", rows()[:-1]), left_out)
    assert [each.prompt.id for each in asked] == ["p0"]
    assert left_out["prompts with fewer responses"] == 1


def test_responses_of_two_models_and_ids_of_two_prompts_are_refused(tmp_path: Path) -> None:
    two = rows()
    two[3]["model"] = "n"
    with pytest.raises(
        DataError, match=r"two.jsonl:4: model: got m and n; expected responses of one reference"
    ):
        read_scored(write(tmp_path / "two.jsonl", two), Counter())
    joined = rows()
    joined[2]["prompt"] = "another question"
    with pytest.raises(DataError, match=r"joined.jsonl:3: id: 'p0' stands for another prompt above"):
        read_scored(write(tmp_path / "joined.jsonl", joined), Counter())
