"""Answers by log-probabilities and in writing, and the calibration of what options have by themselves."""

import math
from collections.abc import Sequence

import pytest

from equipoise.errors import DataError, ModelError
from equipoise.judges.asking import CONTENT_FREE, OptionAsker, TextAsker, contextual, measure_priors
from equipoise.judges.questions import make_questions
from equipoise.protocols import Messages, Sampling
from equipoise.taxonomy import Taxonomy, load_taxonomy

NAN = math.nan
IS_SAFE = make_questions(load_taxonomy("pku19"), ["is_safe"]).is_safe
assert IS_SAFE is not None
PROMPTS = [IS_SAFE.messages("hi", word) for word in ("one", "two", "three")]


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) if p else -math.inf for p in probabilities]


def test_the_likeliest_option_is_picked_and_nan_is_missing() -> None:
    rows = [logs(0.7, 0.3), [NAN, NAN], logs(0.0, 1.0)]
    first, second, third = OptionAsker(lambda prompts, options: rows)(IS_SAFE, PROMPTS)
    assert (first.picked, first.raw, first.missing) == ((0,), [-0.356675, -1.203973], None)
    assert first.logps == pytest.approx(logs(0.7, 0.3))
    assert (second.picked, second.logps, second.raw, second.missing) == (None, None, None, "no_answer")
    assert (third.picked, third.raw) == ((1,), [-100.0, 0.0])  # JSON has no infinity


def test_the_scorer_gets_the_options_of_the_question() -> None:
    seen: list[Sequence[str]] = []

    def score(prompts: Sequence[Messages], options: Sequence[str]) -> list[list[float]]:
        seen.append(options)
        return [logs(0.5, 0.5)] * len(prompts)

    assert len(OptionAsker(score)(IS_SAFE, PROMPTS)) == len(PROMPTS)
    assert OptionAsker(score)(IS_SAFE, []) == []
    assert seen == [("no", "yes")]


def test_a_written_answer_is_kept_as_it_came_and_read_strictly() -> None:
    texts = ["Yes.", "Yes, since it is rude", ""]
    seen: list[Sampling] = []

    def write(
        prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        seen.append(sampling)
        return [[text] for text in texts]

    answers = TextAsker(write, max_new_tokens=5)(IS_SAFE, PROMPTS)
    assert [a.picked for a in answers] == [(1,), None, None]
    assert [a.missing for a in answers] == [None, "unparsable", "no_answer"]
    assert [a.raw for a in answers] == ["Yes.", "Yes, since it is rude", None]
    assert [a.logps for a in answers] == [None] * 3
    assert seen == [Sampling(max_new_tokens=5, temperature=0.0, samples=1)]


def test_a_prompt_that_does_not_fit_is_missing_and_not_asked() -> None:
    asked: list[Messages] = []

    def write(
        prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        asked.extend(prompts)
        return [["no"]] * len(prompts)

    def check(prompt: Messages, sampling: Sampling) -> None:
        if prompt == PROMPTS[1]:
            raise DataError("prompt: too long")

    answers = TextAsker(write, check=check)(IS_SAFE, PROMPTS)
    assert [a.missing for a in answers] == [None, "no_answer", None]
    assert asked == [PROMPTS[0], PROMPTS[2]]


def test_calibration_equals_the_formula_in_plain_floats() -> None:
    p, prior = [0.5, 0.3, 0.2], [0.6, 0.1, 0.3]
    gained = [a / b for a, b in zip(p, prior, strict=True)]
    expected = [math.log(g / sum(gained)) for g in gained]
    assert contextual(logs(*p), prior) == pytest.approx(expected, rel=1e-12)
    assert contextual(logs(*p), [1 / 3] * 3) == pytest.approx(logs(*p), rel=1e-12)
    assert contextual(logs(*prior), prior) == pytest.approx([math.log(1 / 3)] * 3, rel=1e-12)


def test_a_bias_of_the_options_is_recovered_and_taken_out(three: Taxonomy) -> None:
    """Each option gets a constant in log-odds; with it the answer is always the same, without it is right."""
    bias = [2.0, 0.0]

    def score(prompts: Sequence[Messages], options: Sequence[str]) -> list[list[float]]:
        rows = []
        for (message,) in prompts:
            says = 1.5 if "> loud" in message["content"] else -1.5 if "> quiet" in message["content"] else 0.0
            logits = [bias[0], bias[1] + says]
            total = math.log(sum(math.exp(x) for x in logits))
            rows.append([x - total for x in logits])
        return rows

    questions = make_questions(three, ["is_safe", "categories", "better"])
    priors = measure_priors(score, questions)
    assert set(priors) == {q.key for q in questions.all}
    for prior in priors.values():
        assert math.log(prior[0] / prior[1]) == pytest.approx(2.0)
    assert questions.is_safe is not None
    prompts = [questions.is_safe.messages("hi", text) for text in ("loud", "quiet")]
    assert [a.picked for a in OptionAsker(score)(questions.is_safe, prompts)] == [(0,), (0,)]
    calibrated = OptionAsker(score, priors)(questions.is_safe, prompts)
    assert [a.picked for a in calibrated] == [(1,), (0,)]
    for answer, says in zip(calibrated, (1.5, -1.5), strict=True):
        assert answer.logps is not None
        assert answer.logps[1] - answer.logps[0] == pytest.approx(says)
        assert math.exp(answer.logps[0]) + math.exp(answer.logps[1]) == pytest.approx(1)
    assert calibrated[0].raw == [round(x, 6) for x in score(prompts, ())[0]]  # raw is what came


def test_the_prior_is_the_mean_probability_over_texts_that_say_nothing() -> None:
    questions = make_questions(load_taxonomy("pku19"), ["is_safe", "safer"])
    asked: list[str] = []

    def score(prompts: Sequence[Messages], options: Sequence[str]) -> list[list[float]]:
        asked.extend(message["content"] for (message,) in prompts)
        return [logs(p, 1 - p) for p in (0.9, 0.6, 0.3)]

    priors = measure_priors(score, questions)
    assert priors["is_safe"] == pytest.approx([0.6, 0.4])
    assert len(asked) == 2 * len(CONTENT_FREE)
    assert "Answer A:\n> N/A\n\nAnswer B:\n> N/A\n" in asked[3]


def test_no_prior_is_made_up() -> None:
    questions = make_questions(load_taxonomy("pku19"), ["is_safe"])
    with pytest.raises(ModelError, match="calibration: the judge gave no log-probabilities for 'is_safe'"):
        measure_priors(lambda prompts, options: [[NAN, NAN]] * len(prompts), questions)
