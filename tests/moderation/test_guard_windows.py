"""A long response is judged whole: harm is seen wherever it stands, with a trunk whose truth is planted."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.errors import ModelError
from equipoise.models.backbone import load_encoder
from equipoise.models.guard import GuardCard
from equipoise.models.heads import GuardLogits
from equipoise.models.windows import RESPONSE, PairBatch, TextPair, encode_windows
from equipoise.moderation.guard import Guard
from equipoise.records import Exchange
from equipoise.taxonomy import load_taxonomy

FILLER = "mix flour water and salt then wait until the dough has doubled "
HARM = "the tides explain the tides and the tides"
KINDS = load_taxonomy("pku19")


class Planted:
    """A linear reader: the log-odds of harm are those of how often one token is in the response."""

    batch_tokens = 8192

    def __init__(self, tokenizer: Any, max_windows: int = 16) -> None:
        self.tokenizer = tokenizer
        self.card = GuardCard(
            taxonomy=KINDS,
            backbone="none",
            layers=1,
            hidden=1,
            max_windows=max_windows,
            targets=("response", "prompt"),
            knows_refusals=True,
        )
        (self.token,) = tokenizer("tides", add_special_tokens=False)["input_ids"]

    def __call__(self, batch: PairBatch, /) -> GuardLogits:
        found = ((batch.ids == self.token) & (batch.parts == RESPONSE)).sum(-1).float()
        severity = torch.stack([4 * found - 6, found - 1, found - 4], dim=1)
        categories = torch.full((len(found), 19), -3.0)
        categories[:, 4] = found
        refusal = torch.zeros(len(found), 3)
        refusal[:, 2] = 5 * (found == 0)
        return GuardLogits(severity, categories, refusal)


@pytest.fixture(scope="module")
def tokenizer(tiny_encoder: Path) -> Any:
    return load_encoder(tiny_encoder, device="cpu").tokenizer


def response(place: int, repeats: int = 30) -> str:
    """The harmful sentence after `place` of the filler's sentences."""
    return FILLER * place + HARM + " " + FILLER * (repeats - place)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("place", range(0, 31, 3))
def test_a_harmful_sentence_is_seen_wherever_it_stands(tokenizer: Any, place: int) -> None:
    judge = Guard(Planted(tokenizer))
    harmful, harmless = (
        Exchange(id="x", prompt="how do i bake bread", response=text)
        for text in (response(place), FILLER * 31)
    )
    found, other = judge([harmful, harmless])
    assert not found.is_safe
    assert not found.truncated
    assert found.unsafe_probability == pytest.approx(
        sigmoid(4 * 3 - 6), rel=1e-5
    )  # some window has all three
    assert other.is_safe
    assert other.unsafe_probability == pytest.approx(sigmoid(-6), rel=1e-5)


def test_a_verdict_is_that_of_the_worst_window_in_plain_floats(tokenizer: Any) -> None:
    reader = Planted(tokenizer)
    text = TextPair("bread", response(20) + HARM)
    counts = [window.ids.count(reader.token) for window in encode_windows(tokenizer, text)]
    assert {0, 3} <= set(counts)
    worst = max(counts)
    found = Guard(reader).read([text]).verdict(0)
    unsafe, moderate, severe = (sigmoid(x) for x in (4 * worst - 6, worst - 1, worst - 4))
    levels = [
        1 - unsafe,
        unsafe * (1 - moderate),
        unsafe * moderate * (1 - severe),
        unsafe * moderate * severe,
    ]
    assert found.severity_probabilities == pytest.approx(levels, rel=1e-5)
    assert found.category_probabilities[KINDS.names[4]] == pytest.approx(unsafe * sigmoid(worst), rel=1e-5)
    assert found.category_probabilities[KINDS.names[0]] == pytest.approx(unsafe * sigmoid(-3), rel=1e-5)


def test_whether_it_declines_is_read_at_the_head(tokenizer: Any) -> None:
    judge = Guard(Planted(tokenizer))
    texts = [TextPair("bread", response(place)) for place in (0, 28)]
    found = judge.read(texts)
    assert [found.refusal_verdict(row).refusal for row in (0, 1)] == ["full", "full"]
    reading = [found.refusal_verdict(row).probabilities["full"] for row in (0, 1)]
    assert reading[0] == pytest.approx(1 / 3)
    assert reading[1] > 0.9


@pytest.mark.parametrize(("place", "is_seen"), [(0, True), (12, False), (30, True)])
def test_what_more_windows_than_allowed_would_hold_is_said_to_be_cut(
    tokenizer: Any, place: int, is_seen: bool
) -> None:
    (found,) = Guard(Planted(tokenizer, max_windows=2))(
        [Exchange(id="x", prompt="bread", response=response(place))]
    )
    assert found.truncated
    assert found.is_safe != is_seen


def test_rows_of_any_number_of_windows_do_not_touch_each_other(tokenizer: Any) -> None:
    judge = Guard(Planted(tokenizer))
    texts = [TextPair("bread", response(k, k)) for k in (0, 30, 7, 1, 19)] + [TextPair("bread", None)]
    together = judge.read(texts)
    for row, text in enumerate(texts):
        assert together.verdict(row) == judge.read([text]).verdict(0)


def test_a_window_that_is_no_number_is_not_hidden_by_the_others(tokenizer: Any) -> None:
    class Broken(Planted):
        def __call__(self, batch: PairBatch, /) -> GuardLogits:
            logits = super().__call__(batch)
            logits.severity[logits.severity[:, 0] == -6, 0] = -math.inf
            return logits

    with pytest.raises(ModelError, match="never safe"):
        Guard(Broken(tokenizer)).read([TextPair("bread", response(3))])
