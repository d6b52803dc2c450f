"""What responses are worth and what they cost, from wherever it comes.

That is one reward, or those of some groups, and a cost per constraint. The sources are a scorer, which
plays a role on the policy's own weights or is called beside it, a guard's severity, an HTTP server, and
functions of the user's; rules may be added to the reward. A guard and rules are loaded by the layer above
(`pipeline.scoring`) and passed in.

Shapes: R responses, M constraints, L severity levels.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from equipoise.errors import ConfigError, ModelError
from equipoise.generation.rollouts import Rollout
from equipoise.models.checkpoints import load_card
from equipoise.models.roles import Roles
from equipoise.models.roles_load import SCORER
from equipoise.models.scorer import ScorerCard
from equipoise.policy.group_sources import load_groups, seen_by
from equipoise.policy.scoring_settings import CostSettings, ScoringSettings
from equipoise.policy.sources import (
    ByFunction,
    ByGuard,
    ByScorer,
    ByServer,
    Source,
    from_folder,
    from_role,
    numbers,
    quietly,
)
from equipoise.protocols import Judge, Reward
from equipoise.rewards.learned import load_scorer
from equipoise.rewards.served import ServedScores


class Signals(NamedTuple):
    """What a rollout's responses are worth."""

    reward: Tensor
    """[R], better when higher; where there are groups, what is added to what they give."""
    costs: Tensor
    """[R, M], a column for each constraint, raw: worse when higher."""
    severity: Tensor | None
    """[R, L] probability of each level where there is a guard."""
    groups: Mapping[str, Tensor] = {}
    """Group -> [R] the reward in its eyes, as its source gives it; none unless `scoring.maxmin` is set."""
    is_signed: bool = False
    """Whether the first cost is a scorer's, which is unsafe above 0; others may be above 0 always."""


Scoring = Callable[[Sequence[Rollout]], Signals]
"""Score responses. Whatever has this form will do in place of `load_scoring`."""


class Passed(NamedTuple):
    """What the layer above has loaded."""

    judge: Judge | None = None
    """The guard of the settings."""
    rules: Reward | None = None
    """The rules of the settings, without a reward below them."""


def load_scoring(
    settings: ScoringSettings,
    roles: Roles | None,
    names: Sequence[str],
    passed: Passed = Passed(),  # noqa: B008
) -> Scoring:
    """Load the sources that are needed, each once.

    Args:
        settings: Where reward and costs come from.
        roles: Among them the scorer, unless the settings name another.
        names: Of the constraints, in the order of the columns of costs.
        passed: Guard and rules, where the settings name some.

    Raises:
        ConfigError: The settings do not fit the constraints, or a source is missing.
        ModelError: A scorer was not trained for what is wanted of it.
    """
    columns = settings.columns(names)
    for name, given in (("guard", passed.judge), ("rules", passed.rules)):
        if getattr(settings, name) is not None and given is None:
            raise ConfigError(f"scoring.{name}: was not loaded; expected it among what is passed in")
    sources: list[Source] = []
    sources += [_scorer(settings, roles, asked) for asked in _asked(settings, columns)]
    if passed.judge is not None:
        levels = {
            name: cost.level if cost.severity == "at_least" else None
            for name, cost in columns.items()
            if cost.source == "guard"
        }
        sources.append(ByGuard(passed.judge, levels))
    if settings.server is not None:
        wanted = [name for name, cost in columns.items() if cost.source == "server"]
        groups, alone = settings.groups_of("server"), settings.maxmin is None
        wants_reward = alone and settings.reward == "server"
        served = ServedScores(settings.server, reward=wants_reward, costs=wanted, groups=groups)
        sources.append(ByServer(served))
    functions: dict[str | None, str] = {} if settings.maxmin is not None else {None: settings.reward}
    functions |= {name: cost.source for name, cost in columns.items()}
    sources += [ByFunction(source, name) for name, source in functions.items() if ":" in source]
    sources += load_groups(settings)
    return Combined(settings, [quietly(source) for source in sources], names, passed.rules)


class _Asked(NamedTuple):
    """What is wanted of one scorer."""

    folder: Path | None
    """Where it lies; None of the one among the roles."""
    reward: bool
    costs: dict[str, tuple[str, ...]]
    """Constraint -> categories, as in `ByScorer`."""
    groups: list[str]


def _asked(settings: ScoringSettings, columns: Mapping[str, CostSettings]) -> list[_Asked]:
    """Return what is wanted of each scorer, so that each is loaded and asked once."""
    found: dict[Path | None, _Asked] = {}

    def of(folder: Path | None) -> _Asked:
        place = folder or settings.scorer
        return found.setdefault(place, _Asked(place, False, {}, []))

    if "scorer" in settings.rewards:
        asked = of(settings.reward_scorer)
        found[asked.folder] = asked._replace(reward=True, groups=settings.groups_of("scorer"))
    for name, cost in columns.items():
        if cost.source == "scorer":
            of(cost.scorer).costs[name] = cost.categories
    if settings.scorer is not None and settings.scorer not in found and settings.rules is None:
        raise ConfigError(
            f"scoring.scorer: nobody asks {settings.scorer}; expected it to give reward or cost"
        )
    return list(found.values())


def _scorer(settings: ScoringSettings, roles: Roles | None, asked: _Asked) -> Source:
    folder, wants_reward, costs, groups = asked
    if folder is not None:
        scorer = load_scorer(folder, settings.device)
        found = ByScorer(
            from_folder(scorer), scorer.card, reward=wants_reward, costs=costs, where=str(folder)
        )
        return seen_by(groups, found) if groups else found
    if roles is None or SCORER not in roles.roles:
        what = "the reward" if wants_reward else f"the cost of '{next(iter(costs))}'"
        what = f"group '{groups[0]}' (a folder of that name is ./scorer)" if groups else what
        raise ConfigError(
            f"scoring: no scorer for {what}; expected roles.scorer, scoring.scorer or another source"
        )
    if roles.scorer_folder is None:
        raise ModelError(
            "scoring: the scorer among the roles is from no folder; expected roles of `load_roles`"
        )
    card = load_card(roles.scorer_folder, ScorerCard)
    where = str(roles.scorer_folder)
    found = ByScorer(from_role(roles), card, reward=wants_reward, costs=costs, where=where)
    return seen_by(groups, found) if groups else found


class Combined:
    """The `Scoring` of some sources."""

    def __init__(
        self,
        settings: ScoringSettings,
        sources: Sequence[Source],
        names: Sequence[str],
        rules: Reward | None = None,
    ) -> None:
        """Put sources together that give a reward and each of the costs between them."""
        self._settings, self._sources, self._rules = settings, tuple(sources), rules
        self._names = tuple(names)
        self._is_signed = bool(names) and settings.columns(names)[names[0]].source == "scorer"

    def __call__(self, rollouts: Sequence[Rollout]) -> Signals:
        """Ask each source once; 32-bit numbers on the CPU."""
        exchanges = [rollout.exchange for rollout in rollouts]
        reward = torch.zeros(len(rollouts))
        costs: dict[str, Tensor] = {}
        groups: dict[str, Tensor] = {}
        severity = None
        for source in self._sources:
            given = source(exchanges)
            reward = reward if given.reward is None else given.reward
            severity = severity if given.severity is None else given.severity
            costs |= given.costs
            groups |= given.groups
        if self._rules is not None:
            found = self._rules(exchanges)
            reward = reward + numbers(found, exchanges, "scoring.rules", "higher_is_better")
        reward = self._penalised(reward, rollouts)
        columns = [costs[name] for name in self._names]
        stacked = torch.stack(columns, dim=1) if columns else torch.zeros(len(rollouts), 0)
        return Signals(reward, stacked, severity, groups, self._is_signed)

    def _penalised(self, reward: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
        """Take from responses that were cut off what the settings say, [R]."""
        cut = torch.tensor([rollout.is_truncated for rollout in rollouts], dtype=torch.bool)
        if self._settings.truncated_reward is not None:
            return reward.masked_fill(cut, self._settings.truncated_reward)
        return reward - self._settings.truncated_less * cut
