"""How likely a causal language model finds texts. Shapes: B texts, T tokens, V vocabulary."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from equipoise.errors import DataError
from equipoise.models.backbone import Backbone, load_causal
from equipoise.progress import track

_TOKENS = 1024
"""Tokens of a batch, padding included; their logits are [B, T, V]."""


class LocalLikelihood:
    """Mean log-likelihood per token, in nats, of texts under a loaded model."""

    def __init__(self, backbone: Backbone, *, max_tokens: int = 256) -> None:
        """Hold the model; of a longer text only the first `max_tokens` tokens are read."""
        self.model, self.tokenizer, self.ref = backbone
        self.max_tokens = max_tokens
        start = self.tokenizer.bos_token_id
        self.start = self.tokenizer.eos_token_id if start is None else start
        """The token that the first one of a text is predicted from."""

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """Return one value per text, in order, whatever else is in the batch.

        Raises:
            DataError: a text is empty.
        """
        rows = [self._ids(text, place) for place, text in enumerate(texts)]
        values = [0.0] * len(rows)
        for batch in track(_batches([len(ids) for ids in rows]), "reading texts"):
            for place, value in zip(batch, self._mean([rows[place] for place in batch]), strict=True):
                values[place] = value
        return values

    def _ids(self, text: str, place: int) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.max_tokens]
        if not ids:
            raise DataError(f"text {place}: empty; expected a text with at least one token")
        return [self.start, *ids]

    @torch.inference_mode()
    def _mean(self, rows: Sequence[Sequence[int]]) -> list[float]:
        width = max(map(len, rows))
        device = self.model.device
        tokens = torch.tensor([[*ids, *[self.start] * (width - len(ids))] for ids in rows], device=device)
        lengths = torch.tensor([len(ids) for ids in rows], device=device)
        mask = torch.arange(width, device=device) < lengths[:, None]  # [B, T]
        logits = self.model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        sums = losses.view(len(rows), -1).where(mask[:, 1:], 0.0).sum(-1)
        return [-value for value in (sums / (lengths - 1)).tolist()]


def load_likelihood(
    ref: str | Path, *, max_tokens: int = 256, dtype: str = "auto", device: str = "auto"
) -> LocalLikelihood:
    """Load a model for reading texts; an adapter is folded into its base."""
    return LocalLikelihood(load_causal(ref, dtype=dtype, device=device, merge=True), max_tokens=max_tokens)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Group texts of like length, the longest first, under the budget of tokens."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > _TOKENS:
            batches.append([])
        batches[-1].append(place)
    return batches
