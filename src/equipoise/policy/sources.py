"""Where rewards and costs come from: a scorer, a guard, a server, a function. Each is asked once for all.

A source is a callable that gives what was wanted of it. What the source cannot give is found when it is made,
not when hours have been spent.

Shapes: R responses, L severity levels.
"""

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equipoise.errors import ConfigError, ModelError, RunStoppedError, near
from equipoise.models.heads import Scores
from equipoise.models.layout import token_budget_batches
from equipoise.models.roles import Roles
from equipoise.models.roles_load import SCORER
from equipoise.models.scorer import EnsembleCard, ScorerCard
from equipoise.objectives.constraints import expected_severity, group_costs, severity_at_least
from equipoise.progress import silent
from equipoise.protocols import Judge
from equipoise.records import Exchange, Polarity, Score, messages_of
from equipoise.rewards.learned import Scorer, ScorerEnsemble
from equipoise.rewards.served import ServedScores

_TOKENS_PER_BATCH = 4096


class Given(NamedTuple):
    """What one source says of R responses."""

    reward: Tensor | None = None
    """[R], better when higher; None of a source that is not asked for it."""
    costs: Mapping[str, Tensor] = {}
    """Constraint -> [R], worse when higher."""
    severity: Tensor | None = None
    """[R, L] probability of each level."""
    groups: Mapping[str, Tensor] = {}
    """Group -> [R] the reward in its eyes."""


Source = Callable[[Sequence[Exchange]], Given]

ScoresOf = Callable[[Sequence[Exchange]], Scores]


def from_role(roles: Roles) -> ScoresOf:
    """Score by the scorer among the roles, in its own tokens: what `equipoise score` gives for the text."""

    def score(exchanges: Sequence[Exchange]) -> Scores:
        groups = [list(group) for _, group in groupby(exchanges, key=lambda e: e.prompt)]
        with roles.use(SCORER, learning=False) as role:
            chats = [messages_of(group[0].prompt) for group in groups]
            rows = role.rows(chats, [[e.response for e in group] for group in groups])
            parts: dict[int, Scores] = {}
            for batch in token_budget_batches([row.length for row in rows], _TOKENS_PER_BATCH):
                found = role.score([rows[i] for i in batch])
                counts = [len(rows[i].responses) for i in batch]
                each = zip(*(torch.split(part.float().cpu(), counts) for part in found), strict=True)
                parts |= {i: Scores(*some) for i, some in zip(batch, each, strict=True)}
        return Scores(*(torch.cat(part) for part in zip(*(parts[i] for i in range(len(rows))), strict=True)))

    return score


def from_folder(scorer: Scorer | ScorerEnsemble) -> ScoresOf:
    """Score by a scorer that was loaded by itself, for example one that reads the mean of layers."""

    def value(score: Score | None) -> float:
        return 0.0 if score is None else score.value  # of a head that was not trained nothing is wanted

    def score(exchanges: Sequence[Exchange]) -> Scores:
        found = scorer(exchanges)
        categories = [[c.value for c in (each.category_costs or {}).values()] for each in found]
        return Scores(
            torch.tensor([value(each.reward) for each in found]),
            torch.tensor([value(each.cost) for each in found]),
            torch.tensor(categories).reshape(len(found), -1),
        )

    return score


class ByScorer:
    """A scorer's reward, its cost, and the costs of groups of its categories."""

    def __init__(
        self,
        scores: ScoresOf,
        card: ScorerCard | EnsembleCard,
        *,
        reward: bool,
        costs: Mapping[str, Sequence[str]],
        where: str,
    ) -> None:
        """Ask a scorer.

        Args:
            scores: The scorer.
            card: What it says of itself.
            reward: Whether its reward is wanted.
            costs: Constraint -> the categories of which the highest cost counts, or none for the cost as a
                whole.
            where: Its folder, which errors name.

        Raises:
            ModelError: The scorer was not trained for what is wanted.
        """
        self._scores, self._reward = scores, reward
        wanted = {"scoring.reward": "reward"} if reward else {}
        wanted |= {f"scoring.costs.{constraint}": "cost" for constraint, names in costs.items() if not names}
        for setting, name in wanted.items():
            if name not in card.trained:
                has = ", ".join(card.trained) or "nothing"
                raise ModelError(f"{setting}: {where}: gives no {name}; it was trained for: {has}")
        known = () if card.taxonomy is None else card.taxonomy.names
        for constraint, names in costs.items():
            for name in names:
                if name not in known:
                    has = ", ".join(known) or "none, see `category_weight` of `train scorer`"
                    setting = f"scoring.costs.{constraint}.categories"
                    raise ModelError(f"{setting}: {where}: has no cost of '{name}'{near(name, known)}: {has}")
        self._whole = [constraint for constraint, names in costs.items() if not names]
        self._groups = [constraint for constraint, names in costs.items() if names]
        members = [[name in costs[constraint] for name in known] for constraint in self._groups]
        self._members = torch.tensor(members, dtype=torch.bool)

    def __call__(self, exchanges: Sequence[Exchange]) -> Given:
        """Return reward and costs of each."""
        reward, cost, categories = self._scores(exchanges)
        costs = dict.fromkeys(self._whole, cost)
        if self._groups:
            grouped = group_costs(categories, self._members).unbind(dim=1)
            costs |= dict(zip(self._groups, grouped, strict=True))
        return Given(reward if self._reward else None, costs)


class ByGuard:
    """A guard's severity: the expected level, or the probability of some level or a worse one."""

    def __init__(self, judge: Judge, costs: Mapping[str, int | None]) -> None:
        """Ask a guard.

        Args:
            judge: The guard.
            costs: Constraint -> the least level that counts, or None for the expected level.
        """
        self._judge, self._costs = judge, dict(costs)

    def __call__(self, exchanges: Sequence[Exchange]) -> Given:
        """Return severities, and the costs that are made of them."""
        levels = torch.tensor([verdict.severity_probabilities for verdict in self._judge(exchanges)])
        costs = {
            name: expected_severity(levels) if level is None else severity_at_least(levels, level)
            for name, level in self._costs.items()
        }
        return Given(None, costs, levels)


class ByServer:
    """A server's rewards and costs, and its rewards in the eyes of groups."""

    def __init__(self, served: ServedScores) -> None:
        """Ask for what the object was made to ask for."""
        self._served = served

    def __call__(self, exchanges: Sequence[Exchange]) -> Given:
        """Return rewards and costs of each."""
        served = self._served(exchanges)
        return Given(
            None if served.rewards is None else torch.tensor(served.rewards),
            {name: torch.tensor(values) for name, values in served.costs.items()},
            groups={name: torch.tensor(values) for name, values in served.groups.items()},
        )


class ByFunction:
    """What a function of the user's gives, as the reward or as one cost."""

    def __init__(self, name: str, constraint: str | None) -> None:
        """Find the function; it is the reward where there is no constraint."""
        self._function, self._name, self._constraint = load_function(name), name, constraint

    def __call__(self, exchanges: Sequence[Exchange]) -> Given:
        """Return the numbers of each."""
        polarity: Polarity = "higher_is_better" if self._constraint is None else "higher_is_worse"
        found = numbers(self._function(exchanges), exchanges, f"function '{self._name}'", polarity)
        return Given(found) if self._constraint is None else Given(None, {self._constraint: found})


def load_function(name: str) -> Callable[[Sequence[Exchange]], Any]:
    """Return the function behind `package.module:function`; what is not there raises ConfigError."""
    place, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as exc:
        raise ConfigError(
            f"function '{name}': no module '{exc.name}'; expected one that is installed or on PYTHONPATH"
        ) from exc
    found = getattr(module, attribute, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(f"function '{name}': no function '{attribute}' in it{near(attribute, known)}")
    function: Callable[[Sequence[Exchange]], Any] = found
    return function


def numbers(found: Any, exchanges: Sequence[Exchange], where: str, polarity: Polarity) -> Tensor:
    """Return one number for each of R responses, [R], of plain numbers, scores or a tensor.

    Raises:
        ModelError: Another number of them, something that is no number, or a score whose polarity is not
            the one that is needed: a sign is not turned behind anybody's back.
        RunStoppedError: One is not finite.
    """
    items = found.tolist() if hasattr(found, "tolist") else list(found)
    if len(items) != len(exchanges):
        raise ModelError(
            f"{where}: gave {len(items)} numbers for {len(exchanges)} responses; expected one for each"
        )
    values = []
    for item, exchange in zip(items, exchanges, strict=True):
        if isinstance(item, Score):
            if item.polarity != polarity:
                has, needs = (kind.replace("_", " ") for kind in (item.polarity, polarity))
                raise ModelError(f"{where}: gives scores of which {has}; expected that {needs}")
            item = item.value  # noqa: PLW2901
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise ModelError(
                f"{where}: '{exchange.id}': expected a number or a Score, got {type(item).__name__}"
            )
        if not math.isfinite(item):
            raise RunStoppedError(f"{where}: '{exchange.id}': gave {item}; expected a finite number")
        values.append(float(item))
    return torch.tensor(values)


def quietly(source: Source) -> Source:
    """Return a source that shows no progress of its own: it is asked once in every update."""

    def ask(exchanges: Sequence[Exchange]) -> Given:
        with silent():
            return source(exchanges)

    return ask
