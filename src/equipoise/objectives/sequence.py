"""From hidden states to log-probabilities of tokens and of whole responses.

`token_logps` never holds the logits of all positions: with a vocabulary of 50,000 they would outweigh
the model. It works in chunks and computes each chunk a second time in the backward pass.

Shapes: B batch, T tokens, N response tokens of the batch in one flat line, R responses, H width,
V vocabulary. Log-probabilities are in nats.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the entries that count, [B, T] -> [B]. A row with none gives 0.

    What does not count is not looked at: it may be infinite or NaN, and its gradient is exactly 0.

    >>> masked_mean(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([2.])
    """
    counts = mask > 0
    return torch.where(counts, values, 0.0).sum(-1) / counts.sum(-1).clamp(min=1)


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """log softmax(W h + b)[target] at each position, [N]; values and gradients of the plain computation.

    The softmax is taken in float32 at least, and only one chunk of logits, [chunk, V], is alive at a
    time, forward and backward.

    Args:
        hidden: [N, H] last hidden state at the position that predicts the target.
        weight: [V, H] output embedding.
        targets: [N] token ids.
        bias: [V] of the output embedding.
        softcap: c in c tanh(logits / c), for the models that bound their logits (Gemma).
        chunk: Positions at a time. Where None, 256; 1024 where the output embedding learns, since each
            chunk then has a gradient of the embedding's size, which is to be made and added.
    """
    if len(targets) == 0:
        return hidden.sum(-1).to(torch.promote_types(hidden.dtype, torch.float32))
    if chunk is None:
        chunk = 1024 if weight.requires_grad and torch.is_grad_enabled() else 256
    parts = []
    for start in range(0, len(targets), chunk):
        h, t = hidden[start : start + chunk], targets[start : start + chunk]
        if torch.is_grad_enabled():
            part = checkpoint(
                _logps, h, weight, t, bias, softcap, use_reentrant=False, preserve_rng_state=False
            )
        else:
            part = _logps(h, weight, t, bias, softcap)
        parts.append(part)
    return torch.cat(parts)


def _logps(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    return logit_logps(F.linear(hidden, weight, bias), targets, softcap=softcap)


def logit_logps(logits: Tensor, targets: Tensor, *, softcap: float | None = None) -> Tensor:
    """log softmax(logits)[target], [N, V] -> [N], in float32 at least. `softcap` as in `token_logps`."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return -F.cross_entropy(logits, targets, reduction="none")


def segment_sums(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """Sum flat token values by response, [N] -> [count]. A response without tokens gives 0.

    >>> segment_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 3)
    tensor([1., 0., 6.])
    """
    return values.new_zeros(count).index_add(0, segments, values)


def sft(logps: Tensor) -> Tensor:
    """-log p(token), one loss per response token, [N] -> [N]; the loop divides by tokens, not by rows."""
    return -logps


SEQUENCE_LOSSES: dict[str, Callable[..., Tensor]] = {"sft": sft}
