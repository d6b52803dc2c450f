"""One reward from many ratings: the prompt decides what counts, and length by itself counts for nothing.

ArmoRM (Wang et al. 2024) on features of a frozen model. Linear heads predict absolute ratings; from each a
share of one rating, verbosity, is taken off until it does not rise or fall with the length of responses; a
small gate reads the prompt and weighs what remains. Every rating is better when higher.

Shapes: N responses, B pairs, F features, G features of the gate, C ratings.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equipoise.errors import DataError


class RatingHeads(NamedTuple):
    """Linear predictors of ratings."""

    weight: Tensor
    """[C, F]"""
    bias: Tensor
    """[C]"""

    def __call__(self, features: Tensor) -> Tensor:
        """Ratings of responses, [N, F] -> [N, C]."""
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)


def fit_ratings(features: Tensor, ratings: Tensor, *, ridge: float = 1.0) -> RatingHeads:
    """Fit each rating by least squares, the squared weights times `ridge` added; float64.

    Args:
        features: [N, F]
        ratings: [N, C], NaN where a response was not rated for it.
        ridge: Above 0 where there may be fewer responses than features.

    Raises:
        DataError: A rating was given to no response.
    """
    heads, biases = [], []
    for number, column in enumerate(ratings.double().unbind(dim=1)):
        rated = ~column.isnan()
        if not rated.any():
            raise DataError(f"ratings: column {number} holds none; expected at least one rated response")
        x, y = features.double()[rated], column[rated]
        centred = x - x.mean(dim=0)
        gram = centred.T @ centred + ridge * torch.eye(x.shape[1], dtype=x.dtype)
        heads.append(torch.linalg.solve(gram, centred.T @ (y - y.mean())))
        biases.append(y.mean() - x.mean(dim=0) @ heads[-1])
    return RatingHeads(torch.stack(heads), torch.stack(biases))


def length_shares(ratings: Tensor, verbosity: Tensor, lengths: Tensor) -> Tensor:
    """lambda_i = cov(r_i, length) / cov(verbosity, length), [C]: what `decorrelate` has to take off.

    The paper finds them by search, for a rank correlation; this is the one solution for Pearson's.

    Args:
        ratings: [N, C]
        verbosity: [N] a rating of verbosity, or the lengths themselves.
        lengths: [N] tokens.

    Raises:
        DataError: Verbosity does not vary with length, so that nothing can be taken off.
    """
    centred = lengths.double() - lengths.double().mean()
    verbosity = verbosity.double()
    along = centred @ (verbosity - verbosity.mean())
    if along.abs() <= 1e-9 * centred.norm() * (verbosity - verbosity.mean()).norm():
        raise DataError("verbosity: does not vary with the length of responses; expected that it does")
    ratings = ratings.double()
    return centred @ (ratings - ratings.mean(dim=0)) / along


def decorrelate(ratings: Tensor, verbosity: Tensor, shares: Tensor) -> Tensor:
    """r_i - lambda_i verbosity, [N, C]: of what the shares were found on, uncorrelated with length."""
    return ratings - verbosity[:, None] * shares.to(ratings.dtype)


class Gate(nn.Module):
    """What counts for a prompt: weights of the ratings, at least 0 and of sum 1."""

    def __init__(self, features: int, ratings: int, hidden: int = 64) -> None:
        """Read `features` of a prompt through one hidden layer; a new gate weighs all ratings alike."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, ratings)
        ).double()
        nn.init.zeros_(self.layers[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[2].bias)  # type: ignore[arg-type]
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, prompts: Tensor) -> Tensor:
        """Weights of the ratings for each prompt, [N, G] -> [N, C]."""
        weights: Tensor = self.layers(prompts.double()).softmax(dim=-1)
        return weights

    def score(self, prompts: Tensor, ratings: Tensor) -> Tensor:
        """scale sum_i g_i(prompt) r_i, [N]: ratings [N, C] of a response, or of one less another's."""
        weighted: Tensor = self(prompts) * ratings.double()
        return self.log_scale.exp() * weighted.sum(dim=-1)


def fit_gate(
    prompts: Tensor,
    gaps: Tensor,
    *,
    hidden: int = 64,
    steps: int = 500,
    lr: float = 0.01,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> Gate:
    """Fit a gate by -log s(score of the gap), the Bradley-Terry loss, on all pairs at once.

    Args:
        prompts: [B, G] features of the prompts.
        gaps: [B, C] decorrelated ratings of the preferred answer less those of the other.
        hidden: Width of the gate's hidden layer.
        steps: Of AdamW.
        lr: Its learning rate.
        weight_decay: Its weight decay.
        seed: Of the first layer.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = Gate(prompts.shape[1], gaps.shape[1], hidden)
    optimiser = torch.optim.AdamW(gate.parameters(), lr=lr, weight_decay=weight_decay)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = -F.logsigmoid(gate.score(prompts, gaps)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return gate.eval()


class GatedReward(NamedTuple):
    """All the parts; calling it scores responses, higher is better."""

    heads: RatingHeads
    verbosity: int
    """Which rating is that of verbosity."""
    shares: Tensor
    """[C] of verbosity, taken off each rating."""
    gate: Gate

    def ratings(self, responses: Tensor) -> Tensor:
        """Decorrelated ratings of responses, [N, F] -> [N, C]; that of verbosity itself becomes 0."""
        raw = self.heads(responses)
        return decorrelate(raw, raw[:, self.verbosity], self.shares)

    @torch.no_grad()
    def __call__(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """Score of responses [N, F] to prompts [N, G], [N]."""
        return self.gate.score(prompts, self.ratings(responses))
