"""Trained graders: thresholds, heads that find planted propositions, and the same numbers after a save."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from equipoise.errors import DataError, ModelError
from equipoise.models.backbone import load_encoder
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.records import Exchange
from equipoise.rewards.grading import (
    FEWEST,
    Features,
    Inputs,
    TrainedGrader,
    best_threshold,
    fit_heads,
    fit_reader,
    load_grader,
    scale_of,
)


@pytest.mark.parametrize(
    ("scores", "yes", "threshold", "score"),
    [
        ([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1], 1.5, 1.0),
        ([0.0, 1.0, 2.0, 3.0, *[9.0] * 60], [0, 0, 0, 0, *[1] * 60], 2.5, 120 / 121),  # 2 % off from 1.5 to 6
        ([0.0, 1.0, 2.0, 3.0], [0, 1, 0, 1], 0.5, 0.8),  # 2 of 3, and both found
        ([5.0, 5.0], [1, 1], 4.0, 1.0),  # all are a yes
    ],
)
def test_a_threshold_is_half_way_where_f1_is_best(
    scores: Sequence[float], yes: Sequence[int], threshold: float, score: float
) -> None:
    found = best_threshold(np.array(scores), np.array(yes, dtype=bool))
    assert found == pytest.approx((threshold, score))


def data(count: int = 120, width: int = 100) -> tuple[Inputs, np.ndarray]:
    """More inputs than rows; one proposition in the features, one in the words, a third never true."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, count, width)) / np.sqrt(width)
    x[:, :, 0] = rng.normal(0, 1, (2, count))
    labels = np.stack([x[0, :, 0] > 0.5, x[1, :, 0] > 0, np.zeros(count)], axis=1).astype(float)
    labels[:10, 0] = np.nan
    return Inputs(*x), labels


def some(inputs: Inputs, rows: slice) -> Inputs:
    return Inputs(inputs.features[rows], inputs.words[rows])


def test_planted_propositions_are_found_and_one_without_labels_says_no() -> None:
    inputs, labels = data()
    heads, scores = fit_heads(some(inputs, slice(80)), labels[:80], range(80))
    grades = heads(some(inputs, slice(80, None)))
    assert heads.trained.tolist() == [True, True, False]
    assert np.isnan(scores[2])
    assert ((grades[:, :2] > 0.5) == (labels[80:, :2] == 1)).mean() > 0.85
    assert (grades[:, 2] == 0).all()
    assert min(scores[:2]) > 0.75


def test_weights_turned_back_are_those_of_a_fit_on_the_features_themselves() -> None:
    inputs, labels = data(60, 40)
    heads, _ = fit_heads(inputs, labels[:, 1:2], range(60))
    yes, gaps = labels[:, 1] == 1, []
    for share in (0.0, 0.3, 1.0):
        for strength in (3, 30):
            model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8, class_weight="balanced")
            direct = model.fit(inputs.joined(share), yes).coef_[0]
            direct[:40] *= share
            gaps.append(np.linalg.norm(direct - heads.weight[0]) / np.linalg.norm(direct))
    assert min(gaps) < 0.01


def test_answers_without_labels_enough_are_refused() -> None:
    few = np.zeros((40, 1))
    few[: FEWEST - 1] = 1
    with pytest.raises(DataError, match="exchanges: no proposition is true of 8 answers"):
        fit_heads(Inputs(*np.random.default_rng(0).normal(size=(2, 40, 5))), few, range(40))


def test_a_scaled_row_is_about_as_long_as_one_of_words() -> None:
    features = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 7 + 3
    features[:, 4] = 2.0  # says nothing, and is no division by zero
    scaled = scale_of(features)(features)
    assert np.linalg.norm(scaled, axis=1).mean() == pytest.approx(1, abs=0.1)
    assert (scaled[:, 4] == 0).all()


SORRY, HELP = (
    "I am sorry, but I cannot help with that request {}.",
    "Mix flour, water and salt, then wait {}.",
)


def exchanges(count: int) -> list[Exchange]:
    return [
        Exchange(id=str(n), prompt=f"How do I bake bread {n}?", response=(SORRY if n % 2 else HELP).format(n))
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def grader(tiny_encoder: Path) -> TrainedGrader:
    features, rows = Features(load_encoder(str(tiny_encoder), device="cpu"), 2), exchanges(40)
    found, answers = features(rows), [e.response for e in rows]
    reader = fit_reader(found, answers)
    labels = np.array([[float(n % 2), float("nan")] for n in range(40)])
    heads, _ = fit_heads(reader(found, answers), labels, range(40))
    return TrainedGrader(features, reader, heads)


def test_a_trained_grader_tells_answers_apart_and_is_the_same_after_a_save(
    grader: TrainedGrader, tiny_encoder: Path, tmp_path: Path
) -> None:
    rows = exchanges(46)[40:]
    grades = grader(rows)
    assert (grades[:, 0] > 0.5).tolist() == [False, True] * 3
    grader.save(tmp_path)
    loaded = load_grader(tmp_path, load_encoder(str(tiny_encoder), device="cpu"), 2, 2)
    np.testing.assert_allclose(loaded(rows), grades, atol=1e-5)


def test_a_grade_does_not_depend_on_the_other_answers(grader: TrainedGrader) -> None:
    rows = exchanges(6)
    np.testing.assert_allclose(grader(rows)[3], grader([rows[3]])[0], atol=1e-6)


def test_heads_for_another_model_or_other_rules_are_refused(
    grader: TrainedGrader, tiny_encoder: Path, tmp_path: Path
) -> None:
    grader.save(tmp_path)
    backbone = load_encoder(str(tiny_encoder), device="cpu")
    for layers, propositions in ((1, 2), (2, 3)):
        with pytest.raises(ModelError, match="tensor 'weight' has shape"):
            load_grader(tmp_path, backbone, layers, propositions)
    tensors = load_tensors(tmp_path / "weights.safetensors")
    del tensors["bias"]
    save_tensors(tmp_path / "weights.safetensors", tensors)
    with pytest.raises(ModelError, match="the first is bias"):
        load_grader(tmp_path, backbone, 2, 2)


def test_answers_without_a_word_in_common_are_refused() -> None:
    with pytest.raises(DataError, match="no word stands in two answers"):
        fit_reader(torch.zeros(2, 3), ["alpha", "beta"])
