"""Token and sequence log-probabilities against plain floats and the plain computation."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from equipoise.objectives.sequence import (
    SEQUENCE_LOSSES,
    logit_logps,
    masked_mean,
    segment_sums,
    sft,
    token_logps,
)


def log_softmax(logits: list[float], target: int) -> float:
    top = max(logits)
    return logits[target] - top - math.log(sum(math.exp(x - top) for x in logits))


def made(positions: int, vocabulary: int, width: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, targets and bias in float64, wide enough that the softmax is not flat."""
    torch.manual_seed(0)
    hidden = (2 * torch.randn(positions, width)).double().requires_grad_(True)
    weight = torch.randn(vocabulary, width).double().requires_grad_(True)
    bias = torch.randn(vocabulary).double().requires_grad_(True)
    return hidden, weight, torch.randint(vocabulary, (positions,)), bias


def test_logit_logps_match_formula() -> None:
    rows = [[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [900.0, -900.0, 0.0], [-900.0, 900.0, 0.0]]
    targets = [2, 1, 0, 0]
    expected = [log_softmax(row, target) for row, target in zip(rows, targets, strict=True)]
    found = logit_logps(torch.tensor(rows, dtype=torch.float64), torch.tensor(targets))
    assert found.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_token_logps_match_formula_with_bias_and_softcap() -> None:
    hidden, weight, targets, bias = made(5, 7)
    expected = []
    for h, target in zip(hidden.tolist(), targets.tolist(), strict=True):
        raw = [sum(a * b for a, b in zip(h, w, strict=True)) for w in weight.tolist()]
        capped = [3.0 * math.tanh((x + b) / 3.0) for x, b in zip(raw, bias.tolist(), strict=True)]
        expected.append(log_softmax(capped, target))
    found = token_logps(hidden, weight, targets, bias=bias, softcap=3.0, chunk=2)
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [1, 3, 10, 1024])
def test_chunks_change_neither_values_nor_gradients(chunk: int, softcap: float | None) -> None:
    hidden, weight, targets, bias = inputs = made(10, 13)
    logits = hidden @ weight.T + bias
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    plain = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    scale = torch.linspace(-1, 2, 10)
    leaves = (hidden, weight, bias)
    expected = torch.autograd.grad((plain * scale).sum(), leaves)
    found = token_logps(*inputs[:3], bias=bias, softcap=softcap, chunk=chunk)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    for a, b in zip(torch.autograd.grad((found * scale).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(found, token_logps(*inputs[:3], bias=bias, softcap=softcap, chunk=chunk))


class LiveLogits(TorchDispatchMode):
    """Count the tensors with a last axis of `vocabulary` that are alive at once, and their most rows."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width, self.alive, self.peak = vocabulary, width, {}, 0
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            is_logits = isinstance(tensor, Tensor) and tensor.shape[-1:] == (self.vocabulary,)
            if is_logits and tensor.shape[0] != self.width:  # which is a transposed weight or its gradient
                storage = tensor.untyped_storage()
                self.alive[storage.data_ptr()] = StorageWeakRef(storage)
                self.rows = max(self.rows, tensor.shape[0])
        self.alive = {key: ref for key, ref in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, len(self.alive))
        return out


def test_one_chunk_of_logits_is_alive_at_a_time_forward_and_backward() -> None:
    chunks, chunk = 12, 3
    hidden, weight, targets, _ = made(chunks * chunk, 101)
    with LiveLogits(101, width=4) as watch:
        logps = token_logps(hidden, weight, targets, chunk=chunk)
        assert len(watch.alive) == 0
        logps.sum().backward()
    assert 0 < watch.peak <= 3  # logits, their log-softmax, and a gradient, of one chunk

    with LiveLogits(101, width=4) as plain:  # so the measure can fail
        parts = [logit_logps(h @ weight.T, t) for h, t in zip(hidden.split(3), targets.split(3), strict=True)]
    assert len(plain.alive) >= chunks
    assert len(parts) == chunks


@pytest.mark.parametrize(("learns", "chunk"), [(False, 256), (True, 1024)])
def test_chunks_are_small_unless_each_would_add_a_gradient_of_the_embedding(learns: bool, chunk: int) -> None:
    hidden, weight, targets, _ = made(1100, 7)
    with LiveLogits(7, width=4) as watch:
        token_logps(hidden, weight.requires_grad_(learns), targets).sum().backward()
    assert watch.rows == chunk
    with torch.no_grad(), LiveLogits(7, width=4) as watch:
        token_logps(hidden, weight, targets)
    assert watch.rows == 256


def test_half_precision_inputs_give_a_float32_softmax() -> None:
    logits = torch.tensor([[8.0, 8.0, -8.0]], dtype=torch.bfloat16)
    found = logit_logps(logits, torch.tensor([0]))
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx(log_softmax([8.0, 8.0, -8.0], 0), rel=1e-6)


def test_no_positions_give_no_logps_and_a_zero_gradient() -> None:
    hidden, weight, _, _ = made(3, 5)
    found = token_logps(hidden[:0], weight, torch.tensor([], dtype=torch.long))
    assert found.shape == (0,)
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.eq(0).all()


def test_masked_mean_looks_only_at_what_counts() -> None:
    values = torch.tensor([[1.0, math.nan, 4.0], [-math.inf, 2.0, 2.0], [math.nan] * 3], requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    means = masked_mean(values, mask)
    assert means.tolist() == [2.5, 2.0, 0.0]
    means.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_masked_mean_does_not_see_padding() -> None:
    values, mask = torch.tensor([[1.0, 3.0]]), torch.ones(1, 2)
    wider = masked_mean(torch.tensor([[1.0, 3.0, 7.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    assert torch.equal(masked_mean(values, mask), wider)


def test_segment_sums_add_up_each_response_and_pass_the_gradient() -> None:
    values = torch.tensor([0.5, 1.5, -2.0, 4.0], dtype=torch.float64, requires_grad=True)
    sums = segment_sums(values, torch.tensor([1, 1, 0, 3]), 4)
    assert sums.tolist() == [-2.0, 2.0, 0.0, 4.0]
    (sums * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [10.0, 10.0, 1.0, 1000.0]


FORMULAS = {"sft": lambda logp: -logp}


@pytest.mark.parametrize("name", SEQUENCE_LOSSES)
def test_matches_formula(name: str) -> None:
    rows = [-0.5, -7.0, 0.0, -1e4]
    assert SEQUENCE_LOSSES[name](torch.tensor(rows)).tolist() == [FORMULAS[name](row) for row in rows]


def test_every_loss_has_a_formula() -> None:
    assert FORMULAS.keys() == SEQUENCE_LOSSES.keys()


def test_sft_raises_the_probability_of_every_token() -> None:
    logps = torch.tensor([-0.5, -7.0], requires_grad=True)
    sft(logps).sum().backward()
    assert logps.grad is not None
    assert (logps.grad < 0).all()
