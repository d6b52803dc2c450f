"""How probable each of a few fixed answers is, by a model in this process.

The options continue one prompt as siblings of one row, so the prompt is computed once; the numbers are
those of separate passes (`models/layout.py`). Shapes: N prompts, K options.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from equipoise.errors import RunStoppedError
from equipoise.generation.option_text import check_options
from equipoise.models.backbone import Backbone, load_causal, positions_of
from equipoise.models.chat import chat_ids, encode_response
from equipoise.models.layout import Row, response_logps, token_budget_batches
from equipoise.progress import track
from equipoise.protocols import Messages


class LocalOptionScorer:
    """Score options with a loaded model; a `protocols.OptionScorer`.

    An option is scored as the whole answer: its tokens and the one that ends the turn, so that an option
    which begins another one is not counted for both.
    """

    def __init__(self, backbone: Backbone, *, token_budget: int = 4096) -> None:
        """Hold the model; `token_budget` bounds the tokens of a batch, padding included."""
        self.model, self.tokenizer, _ = backbone
        self._budget = token_budget

    def __call__(self, prompts: Sequence[Messages], options: Sequence[str]) -> list[list[float]]:
        """Return the log-probability in nats of each option, normalised over the options, [N][K].

        A prompt that does not fit the model's positions has a row of NaN.

        Raises:
            DataError: fewer than two options, or one that is empty or there twice.
            RunStoppedError: the model gives a logit that is no number.
        """
        check_options(options)
        answers = [encode_response(self.tokenizer, option) for option in options]
        rows = [Row(chat_ids(self.tokenizer, prompt), answers) for prompt in prompts]
        room = self._positions - max(map(len, answers))
        fitting = [i for i, row in enumerate(rows) if len(row.prompt) <= room]
        scored = [[math.nan] * len(options) for _ in rows]
        batches = token_budget_batches([rows[i].length for i in fitting], self._budget)
        for batch in track(batches, "scoring options"):
            chosen = [fitting[at] for at in batch]
            for i, logps in zip(chosen, self._score([rows[i] for i in chosen], len(options)), strict=True):
                scored[i] = logps
        return scored

    @torch.inference_mode()
    def _score(self, rows: Sequence[Row], options: int) -> list[list[float]]:
        sums = response_logps(self.model, rows).sums.view(-1, options)  # [N, K]
        if sums.isnan().any():
            raise RunStoppedError(
                f"{self.model.name_or_path}: the model gives logits that are no numbers (NaN)"
            )
        logps: list[list[float]] = sums.double().log_softmax(-1).tolist()
        return logps

    @property
    def _positions(self) -> float:
        return positions_of(self.model) or math.inf


def load_option_scorer(
    ref: str | Path, *, token_budget: int = 4096, dtype: str = "auto", device: str = "auto"
) -> LocalOptionScorer:
    """Load a model for scoring options; an adapter is folded into its base."""
    backbone = load_causal(ref, dtype=dtype, device=device, merge=True)
    return LocalOptionScorer(backbone, token_budget=token_budget)
