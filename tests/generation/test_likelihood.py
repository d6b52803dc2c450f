"""Likelihoods of texts against a plain forward pass of one text at a time."""

from pathlib import Path

import pytest
import torch

from equipoise.errors import DataError
from equipoise.generation.likelihood import LocalLikelihood, load_likelihood

TEXTS = [
    "Mix flour, water, salt and yeast.",
    "a",
    "Please explain how the tides work and why there are two of them a day. " * 5,
    "0 1 2 3",
    "Zz \u2603",
]


@pytest.fixture(scope="module")
def likelihood(tiny_llama: Path) -> LocalLikelihood:
    return load_likelihood(tiny_llama, max_tokens=64, device="cpu")


def plain(likelihood: LocalLikelihood, text: str) -> float:
    ids = likelihood.tokenizer.encode(text, add_special_tokens=False)[: likelihood.max_tokens]
    ids = [likelihood.tokenizer.bos_token_id, *ids]
    with torch.no_grad():
        logps = likelihood.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(logps[t - 1, ids[t]].item() for t in range(1, len(ids))) / (len(ids) - 1)


def test_values_are_those_of_a_plain_forward_pass(likelihood: LocalLikelihood) -> None:
    assert likelihood(TEXTS) == pytest.approx([plain(likelihood, text) for text in TEXTS], abs=1e-5)


def test_a_value_does_not_depend_on_the_batch(
    likelihood: LocalLikelihood, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = likelihood(TEXTS)
    monkeypatch.setattr("equipoise.generation.likelihood._TOKENS", 1)
    assert likelihood(TEXTS) == pytest.approx(together, abs=1e-5)
    assert likelihood([]) == []


def test_only_the_first_tokens_are_read(likelihood: LocalLikelihood) -> None:
    long = TEXTS[2]
    start = likelihood.tokenizer.decode(likelihood.tokenizer.encode(long, add_special_tokens=False)[:64])
    assert likelihood([long, long + " Zz \u2603"]) == pytest.approx([plain(likelihood, start)] * 2, abs=1e-5)


def test_a_model_without_a_token_for_the_beginning_begins_with_that_for_the_end(tiny_llama: Path) -> None:
    found = load_likelihood(tiny_llama, device="cpu")
    found.tokenizer.bos_token = None
    again = LocalLikelihood((found.model, found.tokenizer, found.ref))
    assert again.start == found.tokenizer.eos_token_id != found.start
    assert again(["a text"]) != pytest.approx(found(["a text"]), abs=1e-4)


def test_an_empty_text_is_refused(likelihood: LocalLikelihood) -> None:
    with pytest.raises(DataError, match=r"^text 1: empty"):
        likelihood(["a", ""])
