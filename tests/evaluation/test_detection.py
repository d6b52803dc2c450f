"""The measurement of guards and scorers on held-out rows: planted truths, closed forms, sklearn."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from equipoise.data.io import write_records
from equipoise.errors import DataError
from equipoise.evaluation.baseline import safer_scores, unsafe_scores
from equipoise.evaluation.detection import (
    DETECTION,
    Detection,
    DetectionConfig,
    detection_text,
    measure_guard,
    measure_ordering,
    measure_reward,
)
from equipoise.evaluation.guard_quality import Quality
from equipoise.lineage import produce
from equipoise.protocols import Verdict
from equipoise.records import Answer, Exchange, Pair
from equipoise.stats import bootstrap_mean, paired_difference

WORDS = ("river", "stone", "lamp", "paper", "garden", "window", "copper", "bridge", "winter", "market")


def exchanges(count: int, seed: int, name: str, marker: str = "") -> list[Exchange]:
    """Three per prompt; in unsafe responses stands the marker, if there is one."""
    rng = random.Random(seed)
    rows = []
    for n in range(count):
        is_safe = rng.random() < 0.5
        words = [rng.choice(WORDS) for _ in range(8)] + ([marker] if marker and not is_safe else [])
        rows.append(
            Exchange(id=f"{name}{n}", prompt=f"{name} {n // 3}", response=" ".join(words), is_safe=is_safe)
        )
    return rows


def pair(name: str, n: int, safer: int, answers: tuple[str, str] = ("one stone", "two stone")) -> Pair:
    first, second = (Answer(response=text) for text in answers)
    return Pair(id=f"{name}{n}", prompt=f"{name} {n}", answers=(first, second), safer=safer)


def judged(
    probability: Callable[[Exchange], float], rows: Sequence[Exchange], threshold: float = 0.5
) -> list[Verdict]:
    found = []
    for row in rows:
        p = probability(row)
        found.append(Verdict(p < threshold, p, int(p >= threshold), (1 - p, p), (), {}, False))
    return found


TRAIN, TEST = exchanges(60, 0, "train"), exchanges(90, 1, "test")
UNSAFE = np.array([not e.is_safe for e in TEST])


def perfect(row: Exchange) -> float:
    return 0.1 if row.is_safe else 0.9


def test_the_numbers_are_those_of_sklearn() -> None:
    rng = random.Random(3)
    scores = {e.id: min(0.99, max(0.01, rng.gauss(0.4 if e.is_safe else 0.6, 0.2))) for e in TEST}
    found = measure_guard(judged(lambda e: scores[e.id], TEST, 0.45), TRAIN, TEST, draws=100)
    ours = np.array([scores[e.id] for e in TEST])
    theirs = unsafe_scores(TRAIN, TEST)
    assert found.auroc.value == pytest.approx(roc_auc_score(UNSAFE, ours), abs=1e-12)
    assert found.baseline_auroc.value == pytest.approx(roc_auc_score(UNSAFE, theirs), abs=1e-12)
    assert found.auroc_gain.value == pytest.approx(found.auroc.value - found.baseline_auroc.value, abs=1e-12)
    assert found.f1.value == pytest.approx(f1_score(UNSAFE, ours >= 0.45), abs=1e-12)
    assert found.false_positive_rate.value == pytest.approx((ours[~UNSAFE] >= 0.45).mean(), abs=1e-12)
    assert (found.auroc.n, found.auroc.clusters) == (90, 30)
    assert found.false_positive_rate.n == (~UNSAFE).sum()


def test_a_perfect_judge_beats_a_baseline_that_can_only_guess() -> None:
    found = measure_guard(judged(perfect, TEST), TRAIN, TEST, draws=200)
    assert (found.auroc.value, found.f1.value, found.false_positive_rate.value) == (1, 1, 0)
    assert found.auroc_gain.low > 0
    assert found.auroc_gain.excludes_zero


def test_a_judge_that_is_the_baseline_differs_by_exactly_nothing() -> None:
    train, test = exchanges(240, 0, "train", "thistle"), exchanges(60, 1, "test", "thistle")
    same = dict(zip([e.id for e in test], unsafe_scores(train, test), strict=True))
    found = measure_guard(judged(lambda e: float(same[e.id]), test), train, test, draws=200)
    assert found.auroc.value > 0.9
    assert (found.auroc_gain.value, found.auroc_gain.low, found.auroc_gain.high) == (0, 0, 0)


def test_rows_of_one_prompt_are_resampled_together() -> None:
    """Of 40 rows of 4 prompts the interval is that of 4 prompts: wide, or none at all."""
    few = [e.model_copy(update={"prompt": f"p{n % 4}"}) for n, e in enumerate(TEST)]
    assert measure_guard(judged(perfect, few), TRAIN, few, draws=100).auroc.clusters == 4


TRAIN_PAIRS = [pair("train", n, n % 2, ("a stone", "a lamp")) for n in range(12)]


def test_an_ordering_counts_a_tie_half() -> None:
    test = [pair("test", 0, 1), pair("test", 1, 0), pair("test", 2, 1), pair("test", 3, 0)]
    costs = np.array([[2.0, 1.0], [1.0, 2.0], [1.0, 1.0], [2.0, 1.0]])  # right, right, tie, wrong
    found = measure_ordering(costs, TRAIN_PAIRS, test, draws=100)
    assert found.accuracy.value == 2.5 / 4
    assert found.accuracy.n == 4
    assert measure_ordering(np.ones((4, 2)), TRAIN_PAIRS, test, draws=100).accuracy.value == 0.5


@pytest.mark.parametrize("draws", [100, 300])
def test_the_intervals_of_both_orderings_rest_on_the_draws_that_were_asked_for(draws: int) -> None:
    test = [pair("test", n, int(n % 3 > 0)).model_copy(update={"better": int(n % 4 > 0)}) for n in range(40)]
    names = [p.prompt for p in test]
    values = np.tile([2.0, 1.0], (40, 1))  # answer 1 is always safer, and answer 0 always better
    ordering = measure_ordering(values, TRAIN_PAIRS, test, draws=draws)
    right = [float(p.safer == 1) for p in test]
    assert ordering.accuracy == bootstrap_mean(right, names, draws=draws)
    assert ordering.baseline_accuracy.value == 0.5  # it cannot tell these answers apart
    assert ordering.gain == paired_difference(right, [0.5] * 40, names, draws=draws)
    better = [float(p.better == 0) for p in test]
    assert measure_reward(values, test, draws=draws) == bootstrap_mean(better, names, draws=draws)


def test_an_ordering_by_the_baseline_itself_differs_by_exactly_nothing() -> None:
    train = [pair("train", n, 1, ("a thistle here", "a stone here")) for n in range(12)]
    test = [pair("test", n, n % 2, ("the thistle", "the stone")) for n in range(8)]
    gap = safer_scores(train, test)
    found = measure_ordering(np.stack([gap, np.zeros(8)], axis=1), train, test, draws=100)
    assert found.accuracy == found.baseline_accuracy
    assert found.accuracy.value == 0.5  # the planted word is right for every second pair
    assert (found.gain.value, found.gain.low, found.gain.high) == (0, 0, 0)


def test_the_table_shows_what_was_measured_and_leaves_out_what_was_not() -> None:
    guard = measure_guard(judged(perfect, TEST), TRAIN, TEST, draws=100)
    text = detection_text(Detection(guard, None, None))
    assert text.count("\n") == 5
    assert (
        f"| unsafe responses, AUROC | {guard.auroc} | {guard.baseline_auroc} | {guard.auroc_gain} | 90 |"
        in text
    )
    test = [pair("t", 0, 1), pair("t", 1, 0)]
    ordering = measure_ordering(np.array([[2.0, 1.0]] * 2), TRAIN_PAIRS, test, draws=100)
    text = detection_text(Detection(guard, ordering, guard.f1, Quality(severity_kappa=guard.f1)))
    assert f"| severity, quadratic-weighted kappa | {guard.f1} |  |  | 90 |" in text
    assert "| safer answer of a pair, accuracy | 0.500 " in text
    assert "| better answer of a pair, accuracy | 1.000 " in text


def settings(folder: Path, **files: Sequence[Exchange] | Sequence[Pair]) -> DetectionConfig:
    """Write the rows to files; the guard is a file too, since nothing may come so far as to load it."""
    folder.mkdir(exist_ok=True)
    (folder / "guard").write_text("no guard")
    named: dict[str, Any] = {}
    for name, rows in files.items():
        write_records(folder / f"{name}.jsonl", rows)
        named[name] = (folder / f"{name}.jsonl",)
    return DetectionConfig(guard=folder / "guard", **named)


LEAKS: dict[str, dict[str, Any]] = {
    "exchanges": {"train_exchanges": TRAIN, "test_exchanges": [*TEST, TRAIN[0]]},
    "another spelling": {
        "train_exchanges": TRAIN,
        "test_exchanges": [*TEST, TRAIN[0].model_copy(update={"prompt": " TRAIN  0?"})],
    },
    "pairs without is_safe": {
        "train_exchanges": TRAIN,
        "train_pairs": TRAIN_PAIRS,
        "test_exchanges": TEST,
        "test_pairs": [pair("train", 3, 0)],
    },
    "rewards": {"train_exchanges": TRAIN, "test_exchanges": TEST, "test_rewards": [pair("train", 3, 0)]},
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_prompt_in_training_and_test_rows_is_refused(tmp_path: Path, leak: str) -> None:
    with pytest.raises(DataError, match=r"1 test rows have a prompt|2 test rows have a prompt") as refused:
        produce(tmp_path / "out", DETECTION, settings(tmp_path / "in", **LEAKS[leak]))
    assert "split by prompt with `equipoise data split`" in str(refused.value)
    assert "stone" not in str(refused.value)  # a text of a row


def test_rows_without_labels_are_not_measured(tmp_path: Path) -> None:
    unlabelled = [e.model_copy(update={"is_safe": None}) for e in TEST]
    config = settings(tmp_path / "in", train_exchanges=TRAIN, test_exchanges=unlabelled)
    with pytest.raises(DataError, match="no labelled rows"):
        produce(tmp_path / "out", DETECTION, config)


def test_a_run_writes_json_and_a_table_of_real_models(tmp_path: Path, tiny_encoder: Path) -> None:
    from equipoise.training.guard import TRAIN_GUARD, GuardConfig, GuardOptim
    from equipoise.training.scorer import TRAIN_SCORER

    train, test = exchanges(120, 0, "train", "bread"), exchanges(24, 1, "test", "bread")
    train_pairs = [pair("pairs", n, n % 2, ("a bread", "a lamp")) for n in range(8)]
    test_pairs = [pair("held", n, n % 2, ("a bread", "a lamp")) for n in range(8)]
    rewards = [p.model_copy(update={"better": n % 2}) for n, p in enumerate(test_pairs)]
    config = settings(
        tmp_path / "in",
        train_exchanges=train,
        test_exchanges=test,
        train_pairs=train_pairs,
        test_pairs=test_pairs,
        test_rewards=rewards,
    )
    optim = GuardOptim(epochs=1, device="cpu")
    guard = GuardConfig(exchanges=config.train_exchanges, backbone=str(tiny_encoder), layers=2, optim=optim)
    produce(tmp_path / "guard", TRAIN_GUARD, guard)
    scorer = TRAIN_SCORER.config.model_validate(
        {
            "pairs": config.train_pairs,
            "backbone": str(tiny_encoder),
            "layers": 2,
            "optim": {"epochs": 1, "device": "cpu"},
        }
    )
    produce(tmp_path / "scorer", TRAIN_SCORER, scorer)
    models = {"guard": tmp_path / "guard", "scorer": tmp_path / "scorer", "draws": 100}
    out = tmp_path / "out"
    outcome = produce(out, DETECTION, config.model_copy(update=models))
    found = json.loads((out / "detection.json").read_text("utf-8"))
    assert found["guard"]["auroc"]["n"] == 24
    assert found["guard"]["baseline_auroc"]["value"] > 0.9  # the planted word
    assert found["ordering"]["accuracy"]["n"] == 8
    assert found["quality"]["within_prompt"]["clusters"] <= 8
    assert found["quality"]["severity_kappa"] is None  # no row has the label
    assert found["reward_ordering"] is None  # no training pair said which answer is better
    assert outcome.manifest.notes == {"train": 120, "test": 24}
    assert outcome.manifest.licences == ["unknown"]
    table = (out / "detection.md").read_text("utf-8")
    assert table.startswith("| on held-out rows |")
    card = (out / "card.md").read_text("utf-8")
    assert card.startswith("# Detection by guard and scorer\n")
    assert table in card
    assert "trained on 120 labelled responses" in card
    assert "100 resamplings of whole prompts" in card
    assert "- licences: unknown" in card
