"""The guard among several draws: which one it takes, and that nothing else decides it."""

import hashlib
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import ModelError
from equipoise.generation.local import load_generator
from equipoise.generation.replies import Answer
from equipoise.generation.sources import Asked
from equipoise.moderation.guarded import REFUSAL_TEXT, Guarding, Method, guarded
from equipoise.protocols import Messages, Sampling, Verdict
from equipoise.records import Exchange, Score

WARM = Sampling(temperature=1.0, seed=5)
PROMPTS: list[Messages] = [[{"role": "user", "content": f"question {i}"}] for i in range(12)]
IDS = [f"q{i}" for i in range(12)]
LIMIT = 0.3
"""Texts below it are safe: of four tries now and then none is."""


def planted(text: str) -> float:
    """A number in 0..1 that is the text's own."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def judge(exchanges: Sequence[Exchange]) -> list[Verdict]:
    found = []
    for exchange in exchanges:
        p = planted(exchange.response)
        found.append(Verdict(p < LIMIT, p, int(p >= LIMIT), (1 - p, p, 0, 0), (), {}, False))
    return found


def reward(exchanges: Sequence[Exchange]) -> list[Score]:
    return [Score(planted(f"reward {e.response}"), "higher_is_better") for e in exchanges]


class Source:
    """A generator whose text is its seed, and which remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], int]] = []

    def __call__(
        self, prompts: Sequence[Messages], sampling: Sampling, ids: Sequence[str] | None = None
    ) -> list[list[str]]:
        assert ids is not None
        self.asked.append((list(ids), sampling.samples))
        return [[f"{sampling.seed}/{name}/{k}" for k in range(sampling.samples)] for name in ids]


def draw(asked: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
    texts = Source()([a.messages for a in asked], sampling, [a.id for a in asked])
    return [[Answer(text, None, 2, 3) for text in row] for row in texts]


ASKED = [Asked(name, prompt) for name, prompt in zip(IDS, PROMPTS, strict=True)]


def test_the_best_of_n_is_the_least_harmful_of_all_draws() -> None:
    rows = Guarding(judge, "best_of_n", tries=4)(draw)(ASKED, WARM._replace(samples=2))
    outcomes = set()
    for name, answers in zip(IDS, rows, strict=True):
        for k, answer in enumerate(answers):
            texts = [f"5/{name}/{k + 2 * t}" for t in range(4)]
            least = min(texts, key=planted)
            is_safe = planted(least) < LIMIT
            assert answer == Answer(
                least if is_safe else REFUSAL_TEXT,
                prompt_tokens=8,
                completion_tokens=12,
                guard={
                    "tries": 4,
                    "unsafe_probability": round(planted(least), 6),
                    "outcome": "accepted" if is_safe else "refused",
                },
            )
            outcomes.add(is_safe)
    assert outcomes == {True, False}


@pytest.mark.parametrize("polarity", ["higher_is_better", "higher_is_worse"])
def test_with_a_reward_the_best_of_n_is_the_best_of_the_safe_ones(polarity: Any) -> None:
    sign = 1 if polarity == "higher_is_better" else -1

    def score(exchanges: Sequence[Exchange]) -> list[Score]:
        return [Score(sign * (found.value - 5), polarity) for found in reward(exchanges)]

    rows = Guarding(judge, tries=6, reward=score)(draw)(ASKED, WARM)
    differs = 0
    for name, (answer,) in zip(IDS, rows, strict=True):
        texts = [f"5/{name}/{t}" for t in range(6)]
        safe = [text for text in texts if planted(text) < LIMIT]
        best = max(safe, key=lambda text: planted(f"reward {text}"), default=REFUSAL_TEXT)
        assert answer.text == best
        differs += best != min(texts, key=planted)
    assert differs > 2  # the least harmful one would be another


def test_reject_takes_the_first_safe_draw_and_draws_again_only_where_it_must() -> None:
    source = Source()
    sampling = WARM._replace(samples=2)
    answers = guarded(source, Guarding(judge, "reject", tries=4))(PROMPTS, sampling, IDS)
    numbers = set()
    left = 0
    for name, row in zip(IDS, answers, strict=True):
        for k, text in enumerate(row):
            texts = [f"5/{name}/{k}", *(f"5/{name}\0{k}\0{t}/0" for t in (1, 2, 3))]
            safe = [t for t in texts if planted(t) < LIMIT]
            assert text == (safe[0] if safe else REFUSAL_TEXT)
            numbers.add(texts.index(safe[0]) if safe else None)
            left += texts.index(safe[0]) if safe else 3
    assert {0, 1, None} <= numbers
    assert source.asked[0] == (IDS, 2)
    assert [samples for _, samples in source.asked[1:]] == [1] * (len(source.asked) - 1)
    assert sum(len(names) for names, _ in source.asked[1:]) == left


@pytest.mark.parametrize("method", ["best_of_n", "reject"])
def test_an_answer_does_not_depend_on_what_else_is_in_the_batch(method: Method) -> None:
    answer = guarded(Source(), Guarding(judge, method, tries=3))
    together = answer(PROMPTS, WARM, IDS)
    alone = [answer([prompt], WARM, [name])[0] for prompt, name in zip(PROMPTS, IDS, strict=True)]
    backwards = answer(PROMPTS[::-1], WARM, IDS[::-1])[::-1]
    assert together == alone == backwards


@pytest.mark.parametrize("method", ["best_of_n", "reject"])
def test_a_guard_with_one_try_changes_only_what_is_unsafe(method: Method) -> None:
    plain = Source()(PROMPTS, WARM, IDS)
    answers = guarded(Source(), Guarding(judge, method, tries=1, refusal_text="No."))(PROMPTS, WARM, IDS)
    assert answers == [[text if planted(text) < LIMIT else "No." for text in row] for row in plain]


@pytest.mark.parametrize("method", ["best_of_n", "reject"])
def test_a_greedy_answer_has_one_try(method: Method) -> None:
    source = Source()
    guarded(source, Guarding(judge, method))(PROMPTS, WARM._replace(temperature=0.0), IDS)
    assert source.asked == [(IDS, 1)]


def lossy(lost: set[str]) -> Any:
    """A draw that brings no answer for some names and samples."""

    def drawn(asked: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
        return [
            [Answer(None, error="status 500") if a.text in lost else a for a in row]
            for row in draw(asked, sampling)
        ]

    return drawn


@pytest.mark.parametrize("method", ["best_of_n", "reject"])
def test_a_draw_that_is_missing_is_no_try_and_where_all_are_so_is_the_answer(method: Method) -> None:
    guarding = Guarding(judge, method, tries=2)
    second = "5/q0/1" if method == "best_of_n" else "5/q0\x000\x001/0"
    ((answer,),) = guarding(lossy({"5/q0/0"}))(ASKED[:1], WARM)
    is_safe = planted(second) < LIMIT
    assert answer.text == (second if is_safe else REFUSAL_TEXT)
    assert answer.guard is not None
    assert answer.guard["tries"] == 1
    assert guarding(lossy({"5/q0/0", second}))(ASKED[:1], WARM) == [[Answer(None, error="status 500")]]


def test_tokens_that_were_not_counted_are_not_made_up() -> None:
    def uncounted(asked: Sequence[Asked], sampling: Sampling) -> list[list[Answer]]:
        return [[row[0], *(Answer(a.text) for a in row[1:])] for row in draw(asked, sampling)]

    ((answer,),) = Guarding(judge, tries=2)(uncounted)(ASKED[:1], WARM)
    assert (answer.prompt_tokens, answer.completion_tokens) == (None, None)


@pytest.mark.parametrize("method", ["best_of_n", "reject"])
def test_a_verdict_that_is_no_number_stops_the_run(method: Method) -> None:
    def broken(exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [verdict._replace(is_safe=True, unsafe_probability=nan) for verdict in judge(exchanges)]

    with pytest.raises(ModelError, match="never safe"):
        guarded(Source(), Guarding(broken, method))(PROMPTS, WARM, IDS)


def test_a_response_is_judged_in_its_conversation() -> None:
    seen: list[Exchange] = []

    def watching(exchanges: Sequence[Exchange]) -> list[Verdict]:
        seen.extend(exchanges)
        return judge(exchanges)

    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Bread?"}]
    guarded(Source(), Guarding(watching, tries=1))([turns], WARM)
    (exchange,) = seen
    assert exchange == Exchange(id="0", prompt=turns, response="5/0/0")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["best_of_n", "reject"])
def test_a_local_model_draws_anew_for_each_try_whatever_the_batch(method: Method, tiny_llama: Path) -> None:
    generate = load_generator(tiny_llama, device="cpu")
    sampling = WARM._replace(max_new_tokens=6)
    seen: list[str] = []

    def strict(exchanges: Sequence[Exchange]) -> list[Verdict]:
        seen.extend(e.response for e in exchanges)
        return [v._replace(is_safe=v.unsafe_probability < 0.1) for v in judge(exchanges)]

    answer = guarded(generate, Guarding(strict, method, tries=3))
    together = answer(PROMPTS[:4], sampling, IDS[:4])
    assert len(set(seen)) > len(seen) * 0.9
    alone = [answer([PROMPTS[i]], sampling, [IDS[i]])[0] for i in range(4)]
    assert together == alone
    first = generate(PROMPTS[:4], sampling, IDS[:4])
    assert {text for (text,) in first} <= set(seen)
