"""Trained graders: thresholds, heads that find planted propositions, and the same numbers after a save."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression

from equipoise.errors import DataError
from equipoise.models.backbone import load_encoder
from equipoise.records import Exchange
from equipoise.rewards import answer_features, grading
from equipoise.rewards.answer_features import (
    AnswerFeatures,
    Features,
    Inputs,
    fit_projection,
    fit_reader,
    sentences,
)
from equipoise.rewards.grading import (
    FEWEST,
    answer_groups,
    best_threshold,
    fit_heads,
)
from equipoise.rewards.summed_odds import Columns, Parts
from equipoise.stats import auroc


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


def answer(text: str, prompt: str = "How do I bake?") -> Exchange:
    return Exchange(id="a", prompt=prompt, response=text)


def data(count: int = 120, width: int = 100) -> tuple[Inputs, np.ndarray]:
    """More inputs than rows; one proposition in the features, one in the words, a third never true.

    Sentences say nothing.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (2, count, width)) / np.sqrt(width)
    x[:, :, 0] = rng.normal(0, 1, (2, count))  # features of whole answers, and a word
    labels = np.stack([x[0, :, 0] > 0.5, x[1, :, 0] > 0, np.zeros(count)], axis=1).astype(float)
    labels[:10, 0] = np.nan
    return Inputs(columns(*x), silent(count, width)), labels


def columns(features: np.ndarray, words: np.ndarray) -> Columns:
    return Columns(features, csr_array(words))


def silent(count: int, width: int) -> Parts:
    """One to three sentences to each answer, all alike."""
    of = np.repeat(np.arange(count), 1 + np.arange(count) % 3)
    return Parts(columns(*np.zeros((2, len(of), width))), of)


def in_sentences(count: int = 120, width: int = 30) -> tuple[Inputs, np.ndarray]:
    """Answers of four sentences each, of which one is enough to make the proposition true."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (2, 4 * count, width)) / np.sqrt(2 * width)
    told = rng.random(4 * count) < 0.13
    rows[0, told, 0] += 2
    nothing = rng.normal(0, 1, (2, count, width)) / np.sqrt(2 * width)
    labels = told.reshape(count, 4).any(1).astype(float)[:, None]
    return Inputs(columns(*nothing), Parts(columns(*rows), np.repeat(np.arange(count), 4))), labels


def logistic(rows: np.ndarray, yes: np.ndarray) -> np.ndarray:
    model = LogisticRegression(C=10, max_iter=5000, tol=1e-8, class_weight="balanced")
    found: np.ndarray = model.fit(rows, yes).coef_[0]
    return found


def test_planted_propositions_are_found_and_one_without_labels_says_no() -> None:
    inputs, labels = data()
    heads, scores = fit_heads(inputs.some(range(80)), labels[:80], range(80))
    grades = heads(inputs.some(range(80, 120)))
    assert heads.trained.tolist() == [True, True, False]
    assert np.isnan(scores[2])
    assert ((grades[:, :2] > 0.5) == (labels[80:, :2] == 1)).mean() > 0.85
    assert (grades[:, 2] == 0).all()
    assert min(scores[:2]) > 0.75


def test_what_one_sentence_makes_true_is_found() -> None:
    inputs, labels = in_sentences()
    heads, scores = fit_heads(inputs.some(range(80)), labels[:80], range(80))
    grades = heads(inputs.some(range(80, 120)))
    assert auroc(grades[:, 0], labels[80:, 0] == 1) > 0.85
    assert scores[0] > 0.7
    assert heads.sentence_weight[0].argmax() == 0


def test_a_head_is_a_mean_of_fits_on_words_alone_and_on_whole_answers() -> None:
    inputs, labels = data(60, 40)
    heads, _ = fit_heads(inputs, labels[:, 1:2], range(60))
    yes = labels[:, 1] == 1
    read = np.hstack([inputs.answers.dense, inputs.answers.sparse.toarray()])
    directions = np.array([np.append(np.zeros(40), logistic(read[:, 40:], yes)), logistic(read, yes)])
    shares, gap, *_ = np.linalg.lstsq(directions.T, heads.weight[0])
    assert gap[0] < 1e-4 * (heads.weight[0] ** 2).sum()  # it lies in their span
    assert (shares > 0).all()


def test_a_view_that_is_the_same_everywhere_has_no_say() -> None:
    inputs, labels = data()
    dense, words = inputs.answers.dense, inputs.answers.sparse.toarray()
    alone = inputs._replace(answers=columns(dense, np.zeros_like(words)))
    heads, scores = fit_heads(alone, labels[:, :1], range(120))
    assert np.isfinite(heads.weight).all()
    assert (heads.sentence_share == 0).all()
    assert scores[0] > 0.75
    nothing = inputs._replace(answers=columns(np.zeros_like(dense), np.ones_like(words)))
    heads, _ = fit_heads(nothing, labels[:, :1], range(120))
    assert (heads.weight == 0).all()


def test_a_yes_begins_half_way_to_where_f1_was_best(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = data()
    found = []
    for best in (0.0, 1.0):
        monkeypatch.setattr(grading, "best_threshold", lambda *_, best=best: (best, 1.0))
        found.append(fit_heads(inputs, labels[:, 1:2], range(120))[0])
    assert found[0].bias[0] - found[1].bias[0] == pytest.approx(0.5)
    assert (found[0].weight == found[1].weight).all()


def some_unlabelled() -> tuple[Inputs, np.ndarray]:
    """Three propositions: of the first too few answers are labelled, of the others not the same ones."""
    inputs, truth = in_sentences()
    labels = np.repeat(truth, 3, axis=1)
    labels[9:, 0], labels[:20, 1], labels[90:, 2] = np.nan, np.nan, np.nan
    labels[:, 2] = np.where(np.isnan(labels[:, 2]), np.nan, inputs.answers.dense[:, 0] > 0)
    return inputs, labels


def test_each_proposition_is_learned_as_if_it_were_alone() -> None:
    inputs, labels = some_unlabelled()
    together, scores = fit_heads(inputs, labels, range(120))
    assert together.trained.tolist() == [False, True, True]
    for place in (1, 2):
        rated = np.flatnonzero(~np.isnan(labels[:, place]))
        alone, score = fit_heads(inputs.some(rated), labels[rated, place : place + 1], rated.tolist())
        assert scores[place] == score[0]
        for found, expected in zip(together[:-1], alone[:-1], strict=True):
            np.testing.assert_allclose(found[place], expected[0], atol=1e-4)


def test_the_three_heads_vary_alike_on_what_they_learned_from() -> None:
    inputs, labels = some_unlabelled()
    three = grading._fit_three(inputs.views, labels)
    for column in (1, 2):
        rated = ~np.isnan(labels[:, column])
        spreads = [
            scale[column] * head(view)[rated, column].std()
            for (head, scale), view in zip(three, inputs.views, strict=True)
        ]
        assert spreads == pytest.approx([spreads[0]] * 3)


def test_what_is_held_back_is_judged_by_heads_that_did_not_see_it() -> None:
    inputs, labels = some_unlabelled()
    labels = labels[:, 1:]
    folds = grading._folds(labels, np.arange(120))
    assert ((folds < 0) == np.isnan(labels)).all()
    assert not (folds[0] == folds[1]).all()
    logits = grading._held_back_logits(inputs.views, labels, folds)
    held = folds[1] == 2
    three = grading._fit_three(inputs.views, np.where(held, np.nan, labels))
    for place, ((head, scale), view) in enumerate(zip(three, inputs.views, strict=True)):
        np.testing.assert_allclose(logits[place, 1][held], (scale * head(view))[held], rtol=1e-9)


def test_what_a_head_without_a_yes_to_learn_from_says_counts_for_nothing() -> None:
    inputs, labels = in_sentences()
    groups = np.where(labels[:, 0] == 1, 0, 1 + np.arange(120) % 3)
    folds = grading._folds(labels, groups)
    logits = grading._held_back_logits(inputs.views, labels, folds)
    assert (logits[:, :, labels[:, 0] == 1] == 0).all()


def noisy(*errors: float, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of heads that err by so much, and the truth, which is seldom yes."""
    rng = np.random.default_rng(1)
    truth = np.arange(count) % 5 == 0
    return np.stack([np.where(truth, 1.0, -1.0) + rng.normal(0, error, count) for error in errors]), truth


def test_heads_count_by_what_they_add_to_the_others() -> None:
    logits, truth = noisy(1.0, 8.0, 1.0)
    shares = grading._shares(logits, truth)
    assert shares.sum() == pytest.approx(1.0)
    assert shares[1] < 0.1
    assert min(shares[0], shares[2]) > 0.4
    assert grading._shares(logits[[0, 0, 0]], truth) == pytest.approx([1 / 3] * 3, abs=1e-3)
    # one repeats the first and errs more; the other tells less than it, but nothing that the first says
    rng = np.random.default_rng(2)
    repeats = logits[0] + rng.normal(0, 1.0, len(truth))
    alone = np.where(truth, 1.0, -1.0) + rng.normal(0, math.sqrt(2), len(truth))
    assert auroc(alone, truth) < auroc(repeats, truth)
    shares = grading._shares(np.stack([logits[0], repeats, alone]), truth)
    assert shares[2] > 1.5 * shares[1]
    silent = np.stack([logits[0], np.full_like(logits[0], 2.0)])
    assert grading._shares(silent, truth).tolist() == [1.0, 0.0]
    assert grading._shares(np.zeros((2, 4)), truth[:4]).tolist() == [0.5, 0.5]


def test_shares_are_those_of_the_least_loss_on_a_grid() -> None:
    logits, truth = noisy(1.0, 2.0, count=60)
    weigh = [0.5 / truth.mean() if yes else 0.5 / (1 - truth.mean()) for yes in truth]

    def loss(first: float, second: float, bias: float) -> float:
        fit = 0.0
        for x, y, yes, weight in zip(*logits.tolist(), truth, weigh, strict=True):
            z = first * x + second * y + bias
            fit += weight * math.log1p(math.exp(-z if yes else z)) / len(truth)
        return fit + 0.01 * (math.log(2 * first) ** 2 + math.log(2 * second) ** 2)

    steps = [math.exp(k / 10) for k in range(-25, 16)]
    _, first, second = min(
        (loss(a, b, bias), a, b) for a in steps for b in steps for bias in (-0.4, -0.2, 0.0, 0.2, 0.4)
    )
    assert grading._shares(logits, truth)[0] == pytest.approx(first / (first + second), abs=0.03)


def test_answers_that_are_equal_or_to_one_prompt_are_not_on_two_sides() -> None:
    said = [("One?", "no"), ("Two?", "no"), ("two? ", "yes"), ("Three?", "perhaps"), ("Four?", "yes")]
    rows = [answer(text, prompt) for prompt, text in said]
    groups = answer_groups(rows)
    assert len({groups[i] for i in (0, 1, 2, 4)}) == 1
    assert groups[3] != groups[0]
    rng = np.random.default_rng(0)  # 40 answers, each to five prompts; what is true of them is chance
    x, truth = rng.normal(0, 1, (40, 60)) / 8, rng.integers(0, 2, 40).astype(float)
    inputs = Inputs(columns(np.repeat(x, 5, axis=0), np.zeros((200, 3))), silent(200, 60))
    rows = [answer(f"answer {i // 5}", f"ask {i}") for i in range(200)]
    labels = np.repeat(truth, 5)[:, None]
    assert fit_heads(inputs, labels, range(200))[1][0] > 0.95  # remembered
    assert fit_heads(inputs, labels, answer_groups(rows))[1][0] < 0.8


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_answers_to_few_prompts_are_split_as_far_as_they_go(prompts: int) -> None:
    inputs, labels = data()
    groups = [i % prompts for i in range(120)]
    if prompts == 1:
        with pytest.raises(DataError, match="to two prompts at least"):
            fit_heads(inputs, labels, groups)
    else:
        assert fit_heads(inputs, labels, groups)[0].trained.tolist() == [True, True, False]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_share_is_that_of_its_own_view(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = in_sentences()
    monkeypatch.setattr(grading, "_shares", lambda *_: np.eye(3)[which])
    monkeypatch.setattr(grading, "best_threshold", lambda *_: (0.0, 1.0))
    grades = fit_heads(inputs, labels, range(120))[0](inputs)[:, 0]
    head, scale = grading._fit_three(inputs.views, labels)[which]
    alone = scale[0] * head(inputs.views[which])[:, 0]
    np.testing.assert_allclose(np.log(grades / (1 - grades)), alone, atol=1e-3)


def test_features_are_of_the_answer_and_of_each_sentence(tiny_encoder: Path) -> None:
    read = Features(load_encoder(str(tiny_encoder), device="cpu"), 2)
    first, second = "Mix flour and water.", "Bake it for an hour."
    found = read([answer(f"{first} {second}"), answer(first)])
    one, two = (read([answer(text)]).answers[0] for text in (first, second))
    assert found.answers.shape == (2, read.width)
    assert found.of.tolist() == [0, 0, 1]
    torch.testing.assert_close(found.some([1]).sentences, found.sentences[2:])
    torch.testing.assert_close(found.some([1, 0]).sentences, torch.stack([one, one, two]))
    torch.testing.assert_close(found.sentences, torch.stack([one, two, one]))
    torch.testing.assert_close(found.answers[1], one)
    assert not torch.allclose(found.answers[0], one)
    torch.testing.assert_close(
        read([answer(first, "What about bread?")]).answers[0], one
    )  # no prompt is read


def test_answers_and_sentences_are_projected_each_by_their_own_kind() -> None:
    answers = ["One thing. Another thing.", "Another thing here.", "One thing."]
    torch.manual_seed(0)
    found = AnswerFeatures(torch.randn(3, 5), torch.randn(4, 5), torch.tensor([0, 0, 1, 2]))
    reader = fit_reader(found, answers)
    np.testing.assert_allclose(reader.answers.mean, found.answers.mean(0), rtol=1e-5)
    np.testing.assert_allclose(reader.sentences.mean, found.sentences.mean(0), rtol=1e-5)
    inputs = reader(found, answers)
    np.testing.assert_allclose(inputs.answers.dense, reader.answers(found.answers))
    np.testing.assert_allclose(inputs.sentences.rows.dense, reader.sentences(found.sentences))
    words = inputs.answers.sparse.toarray(), inputs.sentences.rows.sparse.toarray()
    np.testing.assert_allclose(words[1][2:], words[0][1:])  # answers of one sentence
    assert (words[1][0] != words[0][0]).any()
    assert inputs.some([2, 0]).sentences.of.tolist() == [0, 1, 1]


def test_single_words_are_no_sentences_but_for_an_answer_of_one() -> None:
    assert sentences("No. I won't do that! e.g. this\n\n- and a list") == [
        "I won't do that! e.g. this",
        "- and a list",
    ]
    assert sentences("No.") == ["No."]
    assert sentences("") == [""]
    assert sentences("We did e.g.  this one. ") == ["We did e.g.  this one."]


def test_answers_without_labels_enough_are_refused() -> None:
    few = np.zeros((40, 1))
    few[: FEWEST - 1] = 1
    with pytest.raises(DataError, match="exchanges: no proposition is true of 8 answers"):
        fit_heads(
            Inputs(columns(*np.random.default_rng(0).normal(size=(2, 40, 5))), silent(40, 5)), few, range(40)
        )


def test_a_projected_row_is_about_as_long_as_one_of_words() -> None:
    features = torch.randn(200, 20, generator=torch.Generator().manual_seed(0)) * 7 + 3
    features[:, 4] = 2.0  # says nothing, and is no division by zero
    before = features.clone()
    found = fit_projection(features)
    assert torch.equal(features, before)
    assert (fit_projection(torch.ones(5, 3))(torch.zeros(2, 3)) == 0).all()
    assert np.linalg.norm(found(features), axis=1).mean() == pytest.approx(1, abs=0.1)
    assert (found.directions[4] == 0).all()


def test_a_projection_keeps_the_directions_in_which_texts_differ_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answer_features, "_COMPONENTS", 2)
    hidden = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    directions = torch.randn(2, 30, generator=torch.Generator().manual_seed(1))
    features = hidden @ directions + 0.01 * torch.randn(80, 30, generator=torch.Generator().manual_seed(2))
    found = fit_projection(features)(features)
    assert found.shape == (80, 2)
    _, left, *_ = np.linalg.lstsq(found, (hidden - hidden.mean(0)).numpy())
    assert left.max() < 1e-3 * 80


def test_answers_without_a_word_in_common_are_refused() -> None:
    with pytest.raises(DataError, match="no word stands in two answers"):
        fit_reader(AnswerFeatures(torch.zeros(2, 3), torch.zeros(2, 3), torch.arange(2)), ["alpha", "beta"])
