"""Best-of-n fine-tuning: of several responses to a prompt the best by a scorer is imitated.

With `messages` beside it, only its good messages are: Equilibrate RLHF, 2025 (ARJ).
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from equipoise.errors import ModelError
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.objectives.message_wise import best_of_n
from equipoise.records import Exchange, text_of
from equipoise.training.margins import Answered, ScorerWeights, load_weighed, weighed_scores


class BestOfSettings(ScorerWeights):
    """Which response to a prompt is the best: that with the highest score, the first of equals."""


def best_responses(
    settings: BestOfSettings, exchanges: Sequence[Exchange], path: Path, *, device: str = "auto"
) -> list[int]:
    """Return the places of the best response to each prompt, in their order.

    Args:
        settings: The scorer and its weights.
        exchanges: Responses; those to the same prompt stand against each other.
        path: Keeps the scores for a resume.
        device: Where to compute.

    Raises:
        ModelError: The scorer was not trained for a head that counts, or gave no number.
    """
    if not path.exists():
        weights = (settings.reward_weight, settings.cost_weight)
        model = load_weighed(settings.scorer, *weights, device)
        asked = [Answered(one.prompt, (one.response,)) for one in exchanges]
        scores = weighed_scores(model, asked, *weights)
        if not torch.isfinite(scores).all():
            raise ModelError(f"best_of.scorer: {settings.scorer}: gave a score that is not finite")
        save_tensors(path, {"scores": scores})
    numbers: dict[str, int] = {}
    prompts = [numbers.setdefault(text_of(one.prompt), len(numbers)) for one in exchanges]
    best = best_of_n(load_tensors(path)["scores"], torch.tensor(prompts))
    return [int(place) for place in best.nonzero().flatten()]
