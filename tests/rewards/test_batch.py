"""The files of `score`: reward and cost behind the fields of the row, bad lines in place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.errors import ModelError
from equipoise.lineage import produce
from equipoise.models.scorer import ScorerCard, ScorerModel, load_trunk
from equipoise.records import Exchange
from equipoise.rewards.batch import SCORE, ScoreConfig
from equipoise.rewards.learned import RewardCost, load_scorer
from equipoise.taxonomy import load_taxonomy

ROWS = [
    {"id": "a", "prompt": "how do i bake bread", "response": "mix flour and water", "mine": {"x": 1}},
    {"id": "b", "prompt": "hi"},
    {"id": "c", "prompt": [{"role": "user", "content": "hi"}], "response": "yes", "sample": 3},
    {"id": "a", "prompt": "hi", "response": "twice"},
]


def make_scorer(
    folder: Path, encoder: Path, trained: tuple[str, ...] = ("reward", "cost"), **fields: Any
) -> Path:
    torch.manual_seed(1)
    about = {"backbone": str(encoder), "trunk": "pooled", "layers": 2, "hidden": 6, "trained": trained}
    card = ScorerCard.model_validate(about | fields)
    model = ScorerModel(card, load_trunk("pooled", str(encoder), "cpu"))
    model.trunk.requires_grad_(False)
    folder.mkdir()
    model.save(folder)
    return folder


def score(place: Path, scorer: Path, **settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (place / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = ScoreConfig(file=place / "in.jsonl", scorer=scorer, **settings)
    outcome = produce(place / "out.jsonl", SCORE, config)
    return outcome.manifest.notes, [
        json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()
    ]


def said(folder: Path) -> RewardCost:
    """What the scorer says of row c beside row a, as in the step; on a GPU both compute in 16 bits."""
    rows = [
        Exchange(id="a", prompt="how do i bake bread", response="mix flour and water"),
        Exchange(id="c", prompt="hi", response="yes"),
    ]
    return load_scorer(folder)(rows)[1]


def test_every_row_gets_its_reward_and_cost(tmp_path: Path, tiny_encoder: Path) -> None:
    folder = make_scorer(tmp_path / "scorer", tiny_encoder)
    notes, rows = score(tmp_path, folder)
    assert notes == {"rows": 2, "errors": 2, "reward": "higher_is_better", "cost": "higher_is_worse"}
    assert [list(row) for row in rows] == [
        ["id", "prompt", "response", "mine", "reward", "cost", "score_truncated"],
        ["id", "error"],
        ["id", "prompt", "response", "sample", "reward", "cost", "score_truncated"],
        ["id", "error"],
    ]
    found = said(folder)
    assert found.reward is not None
    assert found.cost is not None
    assert rows[2]["reward"] == pytest.approx(found.reward.value, abs=1e-6)
    assert rows[2]["cost"] == pytest.approx(found.cost.value, abs=1e-6)
    assert "response: missing" in rows[1]["error"]


def test_a_number_format_can_be_chosen(tmp_path: Path, tiny_encoder: Path) -> None:
    folder = make_scorer(tmp_path / "scorer", tiny_encoder)
    costs = {}
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        _, rows = score(tmp_path / dtype, folder, device="cpu", dtype=dtype)
        costs[dtype] = rows[0]["cost"]
    exchange = Exchange(id="a", prompt="how do i bake bread", response="mix flour and water")
    exact = load_scorer(folder, "cpu", "float32")([exchange])[0].cost
    assert exact is not None
    assert costs["float32"] == pytest.approx(exact.value, abs=1e-6)
    assert costs["bfloat16"] != costs["float32"]
    assert costs["bfloat16"] == pytest.approx(costs["float32"], abs=0.02)


def test_a_response_whose_end_was_not_read_is_told(tmp_path: Path, tiny_encoder: Path) -> None:
    scorer = load_scorer(make_scorer(tmp_path / "scorer", tiny_encoder), "cpu")
    words = 128  # of the model; its frame and the prompt take some of them
    texts = ["yes " * (words // 2), "yes " * words]
    short, long = scorer([Exchange(id="a", prompt="hi", response=text) for text in texts])
    assert not short.truncated
    assert long.truncated


@pytest.mark.parametrize(("head", "other"), [("reward", "cost"), ("cost", "reward")])
def test_a_head_that_was_not_trained_is_null(
    tmp_path: Path, tiny_encoder: Path, head: str, other: str
) -> None:
    _, rows = score(tmp_path, make_scorer(tmp_path / "scorer", tiny_encoder, (head,)))
    assert isinstance(rows[0][head], float)
    assert rows[0][other] is None


def test_a_scorer_of_categories_gives_the_cost_of_each_too(tmp_path: Path, tiny_encoder: Path) -> None:
    taxonomy = load_taxonomy("beavertails14")
    folder = make_scorer(tmp_path / "scorer", tiny_encoder, taxonomy=taxonomy)
    _, rows = score(tmp_path, folder)
    assert list(rows[2])[-4:] == ["reward", "cost", "category_costs", "score_truncated"]
    assert tuple(rows[2]["category_costs"]) == taxonomy.names
    found = said(folder)
    assert found.category_costs is not None
    values = {name: score.value for name, score in found.category_costs.items()}
    assert len(set(values.values())) == 14
    assert rows[2]["category_costs"] == pytest.approx(values, abs=1e-6)


def test_a_folder_that_is_no_scorer_is_one_line(tmp_path: Path, tiny_encoder: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.json"):
        score(tmp_path, tiny_encoder)
