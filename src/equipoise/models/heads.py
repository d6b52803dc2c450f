"""Heads that turn features into labels and scores.

Shapes: B batch, F features, C categories, K severity thresholds (levels above 0).
"""

from typing import NamedTuple

from torch import Tensor, nn


class GuardLogits(NamedTuple):
    """What the guard's heads say before any sigmoid."""

    severity: Tensor
    """[B, K] log-odds of P(severity >= 1), P(>= 2 | >= 1), ...; the first is P(unsafe)."""
    categories: Tensor
    """[B, C] log-odds of each category, given that the text is unsafe."""
    refusal: Tensor
    """[B, 3] logits of none, partial, full."""


class GuardHeads(nn.Module):
    """A small shared layer, then one linear head for each kind of label."""

    def __init__(self, features: int, hidden: int, categories: int, thresholds: int, dropout: float) -> None:
        """Make the heads for `features` inputs; sizes of the outputs come from the taxonomy."""
        super().__init__()
        self.shared = nn.Sequential(
            nn.LayerNorm(features),
            nn.Dropout(dropout),
            nn.Linear(features, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.severity = nn.Linear(hidden, thresholds)
        self.categories = nn.Linear(hidden, categories)
        self.refusal = nn.Linear(hidden, 3)

    def forward(self, features: Tensor) -> GuardLogits:
        """[B, F] -> the logits of every head."""
        hidden = self.shared(features)
        return GuardLogits(self.severity(hidden), self.categories(hidden), self.refusal(hidden))


class Scores(NamedTuple):
    """What the scorer's heads say."""

    reward: Tensor
    """[B] higher is better."""
    cost: Tensor
    """[B] higher is worse, above 0 is unsafe."""
    categories: Tensor
    """[B, C] the cost of each category: higher is worse, above 0 is of the category."""


class ScorerHeads(nn.Module):
    """Reward (higher is better) and cost (higher is worse, above 0 is unsafe), a head for each.

    With `categories` there is a head for the costs of these too.
    """

    def __init__(self, features: int, hidden: int, dropout: float, categories: int = 0) -> None:
        """Make the heads for `features` inputs; `hidden` 0 gives plain linear heads."""
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.reward = _score_head(features, hidden, dropout)
        self.cost = _score_head(features, hidden, dropout)
        self.categories = _score_head(features, hidden, dropout, categories) if categories else None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, F] -> reward [B] and cost [B]."""
        normed = self.norm(features)
        return self.reward(normed).squeeze(-1), self.cost(normed).squeeze(-1)

    def every_score(self, features: Tensor) -> Scores:
        """[B, F] -> also the costs of the categories; C is 0 without heads for them."""
        reward, cost = self(features)
        if self.categories is None:
            return Scores(reward, cost, cost.new_zeros(len(cost), 0))
        return Scores(reward, cost, self.categories(self.norm(features)))


def _score_head(features: int, hidden: int, dropout: float, scores: int = 1) -> nn.Module:
    if not hidden:
        return nn.Linear(features, scores)
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(features, hidden),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, scores),
    )
