"""The step that measures a scorer: its files, its tables, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equipoise.data.io import write_records
from equipoise.errors import DataError
from equipoise.evaluation.scorer_quality import measure_scorer
from equipoise.evaluation.scorer_run import SCORER_QUALITY, ScorerQualityConfig, scorer_text
from equipoise.lineage import Outcome, produce
from equipoise.models.scorer import ScorerCard, ScorerModel, load_trunk
from equipoise.pipeline.steps import step_of
from equipoise.records import Answer, Pair
from equipoise.rewards.learned import load_scorer


def pairs(count: int, name: str = "held") -> list[Pair]:
    return [
        Pair(
            id=f"{name}{n}",
            prompt=f"{name} question {n // 2}",
            answers=(
                Answer(response=f"the dough has doubled {n}", severity=0, is_safe=True),
                Answer(response=f"mountains {n}", severity=n % 4, is_safe=n % 4 == 0),
            ),
            better=0,
            safer="tie" if n % 4 == 0 else 0,
            licence="CC0-1.0",
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def scorer(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scorer with a reward that nobody trained, and a random cost."""
    torch.manual_seed(0)
    card = ScorerCard(backbone=str(tiny_encoder), trunk="pooled", layers=2, hidden=0, trained=("cost",))
    folder = tmp_path_factory.mktemp("scorer")
    ScorerModel(card, load_trunk("pooled", str(tiny_encoder), "cpu")).save(folder)
    return folder


def measure(place: Path, scorer: Path, held: list[Pair], **settings: Any) -> Outcome:
    write_records(place / "held.jsonl", held)
    config = ScorerQualityConfig(scorer=scorer, pairs=(place / "held.jsonl",), draws=100, **settings)
    return produce(place / "out", SCORER_QUALITY, config)


def test_a_run_writes_what_the_scores_of_the_folder_give(tmp_path: Path, scorer: Path) -> None:
    held = pairs(80)
    outcome = measure(tmp_path, scorer, held)
    costs = [
        f.cost.value for f in load_scorer(scorer)([p.exchange(k) for p in held for k in (0, 1)]) if f.cost
    ]
    direct = measure_scorer(held, None, np.array(costs).reshape(-1, 2), draws=100)
    assert direct.cost is not None
    assert direct.cost.operating is not None
    found = json.loads((tmp_path / "out" / "scorer.json").read_text("utf-8"))
    assert found["reward"] is None  # the scorer was not trained for it
    assert found["cost"]["ordering"]["mixed"] == pytest.approx(direct.cost.ordering["mixed"]._asdict())
    assert found["cost"]["ordering"].keys() == direct.cost.ordering.keys()
    assert found["cost"]["operating"]["threshold"] == pytest.approx(direct.cost.operating.threshold._asdict())
    assert len(found["cost"]["calibration"]["bins"]) == len(direct.cost.calibration.bins)  # type: ignore[union-attr]
    table = (tmp_path / "out" / "scorer.md").read_text("utf-8")
    assert table == scorer_text(direct)
    card = (tmp_path / "out" / "card.md").read_text("utf-8")
    assert table in card
    assert "measured on 80 pairs, training rows not given" in card
    assert "- licences: CC0-1.0" in card
    assert outcome.manifest.notes == {"pairs": 80, "warnings": list(direct.warnings)}
    assert "dough" not in card  # a text of a row


def test_the_tables_show_each_measure_with_its_rows() -> None:
    held = pairs(80)
    signs = np.array([[-1.0, 1.0]] * 80) * np.linspace(1, 2, 80)[:, None]
    found = measure_scorer(held, -signs, -signs, draws=100)
    text = scorer_text(found)
    assert found.cost is not None
    mixed = found.cost.ordering["mixed"]
    assert "the reward is upside down" not in text
    assert text.count("**Warning: the cost is upside down") == 1
    assert f"| mixed | {mixed} | 60 | {mixed.clusters} |" in text
    assert "| severity gap 3 | 0.000 " in text
    assert "| better answer of a pair has the higher reward | value [95 %] | n | prompts |" in text
    assert "| threshold that flags 0.05 of the safe answers | " in text
    assert "| sigmoid(cost) as P(unsafe): from | to | mean | observed | n |" in text
    assert "Expected calibration error 0." in text
    assert "| accuracy where the longer answer is preferred | " in text
    assert "| accuracy where the shorter answer is preferred | " not in text  # there is none


def test_prompts_of_the_training_pairs_are_refused(tmp_path: Path, scorer: Path) -> None:
    train = [*pairs(4, "train"), pairs(2)[1].model_copy(update={"prompt": " HELD question  0?"})]
    write_records(tmp_path / "train.jsonl", train)
    with pytest.raises(DataError, match="2 pairs have a prompt that was trained on, first held0") as refused:
        measure(tmp_path, scorer, pairs(8), train_pairs=(tmp_path / "train.jsonl",))
    assert "question" not in str(refused.value)
    write_records(tmp_path / "single.jsonl", [train[-1].exchange(0)])
    with pytest.raises(DataError, match="2 pairs have a prompt that was trained on, first held0"):
        measure(tmp_path, scorer, pairs(8), train_exchanges=(tmp_path / "single.jsonl",))


def test_a_file_without_pairs_is_refused(tmp_path: Path, scorer: Path) -> None:
    with pytest.raises(DataError, match="pairs: no pair to measure on"):
        measure(tmp_path, scorer, [])


def test_a_recipe_finds_the_step() -> None:
    assert step_of("evaluate.scorer") is SCORER_QUALITY
