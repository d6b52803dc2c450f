"""Windows: a long response is read whole, and its rows' logits are the largest of any window."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.models.backbone import load_encoder
from equipoise.models.heads import GuardLogits
from equipoise.models.windows import (
    PROMPT,
    RESPONSE,
    TextPair,
    encode_all,
    encode_pair,
    encode_windows,
    pool_windows,
    window_starts,
)
from equipoise.objectives.classification import severity_probabilities


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder: Path) -> object:
    return load_encoder(tiny_encoder, device="cpu").tokenizer


def part_of(window: object, which: int) -> list[int]:
    return [i for i, part in zip(window.ids, window.parts, strict=True) if part == which]


NUMBERS = " ".join(str(n % 11) for n in range(400))


def test_what_fits_is_one_window(tokenizer: object) -> None:
    for pair in (TextPair("warm coat", "yes"), TextPair("warm coat", None), TextPair("coat", "")):
        assert encode_windows(tokenizer, pair) == [encode_pair(tokenizer, pair)]


@pytest.mark.parametrize("prompt", ["take a warm coat", "water " * 300])
def test_windows_hold_the_prompt_and_together_the_whole_response(tokenizer: object, prompt: str) -> None:
    windows = encode_windows(tokenizer, TextPair(prompt, NUMBERS))
    whole = tokenizer(NUMBERS, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [part_of(window, RESPONSE) for window in windows]
    starts = window_starts(len(whole), len(pieces[0]))
    assert [whole[start : start + len(pieces[0])] for start in starts] == pieces
    assert {p for s in starts for p in range(s, s + len(pieces[0]))} == set(range(len(whole)))
    assert len({tuple(part_of(window, PROMPT)) for window in windows}) == 1
    assert {len(window.ids) for window in windows} == {tokenizer.model_max_length}
    first = encode_pair(tokenizer, TextPair(prompt, NUMBERS))
    assert (windows[0].ids, windows[0].parts) == (first.ids, first.parts)
    assert first.truncated
    assert {window.truncated for window in windows} == {False}
    assert {window.context_truncated for window in windows} == {
        prompt.count("water") > 0
    }  # its middle is cut


@pytest.mark.parametrize("kind", ["tiny_encoder", "tiny_llama"])
def test_many_at_once_are_encoded_as_each_by_itself(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_encoder(request.getfixturevalue(kind), device="cpu").tokenizer
    texts = ["", " ", "hi", "wärm çoat 🧥\n\n", "\u200b\x00 [SEP] <|im_end|>", NUMBERS, "日本語 " * 9]
    pairs = [TextPair(a, b) for a in texts for b in (*texts, None)]
    together = encode_all(tokenizer, pairs, 3)
    assert together == [encode_windows(tokenizer, pair, 3) for pair in pairs]
    for pair, windows in zip(pairs, together, strict=True):
        if pair.response and pair.response != NUMBERS:  # one call for one text
            space = " " if kind == "tiny_llama" else ""
            alone = tokenizer(space + pair.response, add_special_tokens=False)["input_ids"]
            assert part_of(windows[0], RESPONSE) == alone
    assert encode_all(tokenizer, []) == []


@given(length=st.integers(0, 500), size=st.integers(1, 160))
def test_every_token_has_a_quarter_of_a_window_around_it(length: int, size: int) -> None:
    starts = window_starts(length, size)
    for token in range(length):
        assert any(
            (token - start >= size // 4 or start == 0)
            and (start + size - 1 - token >= size // 4 or start + size >= length)
            for start in starts
            if start <= token < start + size
        )


@pytest.mark.parametrize(("most", "kept"), [(1, [0]), (2, [0, -1]), (3, [0, 1, -1]), (4, [0, 1, -2, -1])])
def test_of_too_many_windows_the_first_and_the_last_are_read(
    tokenizer: object, most: int, kept: list[int]
) -> None:
    every = encode_windows(tokenizer, TextPair("hi", NUMBERS))
    some = encode_windows(tokenizer, TextPair("hi", NUMBERS), most)
    assert len(every) > 4
    assert not any(window.truncated for window in every)
    assert all(window.truncated for window in some)
    assert [w.ids for w in some] == [every[k].ids for k in kept]


def test_a_long_prompt_by_itself_is_read_whole_as_a_response_is(tokenizer: object) -> None:
    windows = encode_windows(tokenizer, TextPair(NUMBERS, None))
    whole = tokenizer(NUMBERS, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [part_of(window, PROMPT) for window in windows]
    starts = window_starts(len(whole), len(pieces[0]))
    assert len(starts) > 4
    assert [whole[start : start + len(pieces[0])] for start in starts] == pieces
    assert {p for s in starts for p in range(s, s + len(pieces[0]))} == set(range(len(whole)))
    assert {(w.truncated, w.context_truncated) for w in windows} == {(False, False)}
    some = encode_windows(tokenizer, TextPair(NUMBERS, None), 3)
    assert [w.ids for w in some] == [windows[k].ids for k in (0, 1, -1)]
    assert all(w.truncated for w in some)


def test_the_only_window_of_a_long_prompt_has_its_head_and_its_tail(tokenizer: object) -> None:
    (window,) = encode_windows(tokenizer, TextPair(NUMBERS, None), 1)
    whole = tokenizer(NUMBERS, add_special_tokens=False, verbose=False)["input_ids"]
    kept = part_of(window, PROMPT)
    assert kept == whole[: len(kept) // 2] + whole[-(len(kept) // 2) :]
    assert window.truncated
    assert not window.context_truncated


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def random_logits(rows: int, scale: float = 3.0) -> GuardLogits:
    generator = torch.Generator().manual_seed(0)
    return GuardLogits(*(scale * torch.randn(rows, n, generator=generator).double() for n in (3, 5, 3)))


COUNTS = [1, 3, 2, 1, 4]


def test_pooled_probabilities_are_the_largest_of_any_window() -> None:
    logits = random_logits(sum(COUNTS))
    found = pool_windows(logits, COUNTS)
    start = 0
    for row, count in enumerate(COUNTS):
        own = range(start, start + count)
        start += count
        severity = [[sigmoid(x) for x in logits.severity[w].tolist()] for w in own]
        reached = [max(math.prod(window[: k + 1]) for window in severity) for k in range(3)]
        levels = severity_probabilities(found.severity[row : row + 1])[0].tolist()
        assert [sum(levels[k:]) for k in (1, 2, 3)] == pytest.approx(reached, rel=1e-9)
        marginal = [
            max(severity[i][0] * sigmoid(logits.categories[w, c].item()) for i, w in enumerate(own))
            for c in range(5)
        ]
        given_unsafe = [sigmoid(x) for x in found.categories[row].tolist()]
        assert [p * reached[0] for p in given_unsafe] == pytest.approx(marginal, rel=1e-9)
        assert torch.equal(found.refusal[row], logits.refusal[own[0]])


def test_one_window_keeps_its_logits_bit_by_bit() -> None:
    logits = GuardLogits(*(part.float() for part in random_logits(5)))
    for ours, theirs in zip(pool_windows(logits, [1] * 5), logits, strict=True):
        assert torch.equal(ours, theirs)
    mixed = pool_windows(logits, [1, 2, 1, 1])
    for ours, theirs in zip(mixed, logits, strict=True):
        assert torch.equal(ours[[0, 2, 3]], theirs[[0, 3, 4]])


def test_the_order_of_windows_matters_to_a_refusal_only() -> None:
    logits = random_logits(4)
    backwards = GuardLogits(*(part.flip(0) for part in logits))
    one, other = pool_windows(logits, [4]), pool_windows(backwards, [4])
    torch.testing.assert_close(one.severity, other.severity, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.categories, other.categories, rtol=1e-12, atol=0)
    assert torch.equal(other.refusal[0], logits.refusal[3])


def test_windows_that_say_the_same_say_it_together() -> None:
    logits = GuardLogits(*(part[:1].repeat(3, 1) for part in random_logits(1)))
    for ours, theirs in zip(pool_windows(logits, [3]), logits, strict=True):
        torch.testing.assert_close(ours, theirs[:1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 50.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_at_extreme_logits(scale: float, dtype: torch.dtype) -> None:
    logits = GuardLogits(*(part.to(dtype).requires_grad_() for part in random_logits(8, scale)))
    found = pool_windows(logits, [1, 5, 2])
    assert all(part.dtype == dtype and torch.isfinite(part).all() for part in found)
    sum(part.sum() for part in found).backward()
    assert all(part.grad is not None and torch.isfinite(part.grad).all() for part in logits)


def test_only_the_window_that_decides_learns() -> None:
    severity = torch.tensor([[-1.0, 0.5], [2.0, 1.0], [0.0, 0.0]], requires_grad=True)
    logits = GuardLogits(severity, torch.zeros(3, 1), torch.zeros(3, 3))
    pool_windows(logits, [3]).severity[:, 0].sum().backward()
    assert severity.grad is not None
    assert severity.grad.tolist() == [[0, 0], [1, 0], [0, 0]]


def test_a_window_without_an_answer_is_not_hidden_by_another() -> None:
    logits = random_logits(2)
    logits.severity[1, 0] = torch.nan
    assert not torch.isfinite(pool_windows(logits, [2]).severity).all()
