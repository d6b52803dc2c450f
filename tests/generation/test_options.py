"""Options scored by a model here: the numbers of separate passes, one prompt and one option at a time."""

import math
from pathlib import Path

import pytest
import torch

from equipoise.errors import DataError, RunStoppedError
from equipoise.generation.options import LocalOptionScorer, load_option_scorer
from equipoise.models.chat import chat_ids, encode_response
from equipoise.protocols import Messages, OptionScorer

CHATS: list[Messages] = [
    [{"role": "user", "content": "How do I bake bread?"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Explain the tides, please."}],
    [{"role": "user", "content": "Hi"}],
]
OPTIONS = ["safe", "safe enough", "unsafe", "no"]


@pytest.fixture(scope="module")
def scorer(tiny_llama: Path) -> LocalOptionScorer:
    return load_option_scorer(tiny_llama, device="cpu")


def reference(scorer: LocalOptionScorer, chat: Messages, options: list[str]) -> list[float]:
    """log softmax of the summed log-probabilities, each option in a pass of its own, in plain floats."""
    sums = []
    for option in options:
        prompt, answer = chat_ids(scorer.tokenizer, chat), encode_response(scorer.tokenizer, option)
        with torch.inference_mode():
            logits = scorer.model(torch.tensor([prompt + answer])).logits[0].double()
        logps = logits.log_softmax(-1)
        sums.append(sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)))
    top = max(sums)
    total = top + math.log(sum(math.exp(s - top) for s in sums))
    return [s - total for s in sums]


@pytest.mark.parametrize("budget", [1, 128, 4096])
def test_one_pass_gives_the_numbers_of_separate_passes(tiny_llama: Path, budget: int) -> None:
    scorer = load_option_scorer(tiny_llama, device="cpu", token_budget=budget)
    as_protocol: OptionScorer = scorer
    scored = as_protocol(CHATS, OPTIONS)
    for chat, row in zip(CHATS, scored, strict=True):
        assert row == pytest.approx(reference(scorer, chat, OPTIONS), abs=1e-4)
        assert sum(map(math.exp, row)) == pytest.approx(1.0)
    assert len({round(row[0], 3) for row in scored}) == 3  # the prompt does matter


def test_the_prompt_is_computed_once_for_all_options(scorer: LocalOptionScorer) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = scorer.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    scorer(CHATS[:1], OPTIONS)
    hook.remove()
    prompt = len(chat_ids(scorer.tokenizer, CHATS[0]))
    answers = sum(len(encode_response(scorer.tokenizer, option)) for option in OPTIONS)
    assert shapes == [(1, prompt + answers)]


def test_a_prompt_that_does_not_fit_is_missing(scorer: LocalOptionScorer) -> None:
    long: Messages = [{"role": "user", "content": "bread " * 300}]
    first, second, third = scorer([CHATS[0], long, CHATS[2]], OPTIONS)
    assert all(map(math.isnan, second))
    for row, alone in zip((first, third), scorer([CHATS[0], CHATS[2]], OPTIONS), strict=True):
        assert row == pytest.approx(alone, abs=1e-4)
    assert scorer([], OPTIONS) == []


def test_the_longest_prompt_that_fits_is_scored(scorer: LocalOptionScorer) -> None:
    chats: list[Messages] = [[{"role": "user", "content": "q" * n}] for n in range(200, 256)]
    longest = max(len(encode_response(scorer.tokenizer, option)) for option in OPTIONS)
    lengths = [len(chat_ids(scorer.tokenizer, chat)) + longest for chat in chats]
    positions = scorer.model.config.max_position_embeddings
    assert {positions, positions + 1} <= set(lengths)
    assert [not math.isnan(row[0]) for row in scorer(chats, OPTIONS)] == [n <= positions for n in lengths]


@pytest.mark.parametrize("options", [["yes"], ["yes", ""], ["yes", "Yes "], ["yes", "no", "yes."], []])
def test_options_that_cannot_be_told_apart_are_refused(scorer: LocalOptionScorer, options: list[str]) -> None:
    with pytest.raises(DataError, match=r"options: got .*; expected two or more, none empty and none twice"):
        scorer(CHATS, options)


def test_a_broken_model_stops_the_run(tiny_llama: Path) -> None:
    broken = load_option_scorer(tiny_llama, device="cpu")
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[:] = math.nan
    with pytest.raises(RunStoppedError, match="no numbers"):
        broken(CHATS, OPTIONS)
