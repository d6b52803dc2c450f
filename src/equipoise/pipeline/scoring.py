"""Scores of rollouts from all sources there are: those of `policy.scoring`, with a guard and rules loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from equipoise.models.roles import Roles
from equipoise.policy import scoring
from equipoise.policy.scoring import Passed, Scoring
from equipoise.policy.scoring_settings import ScoringSettings

if TYPE_CHECKING:
    from equipoise.rewards.rules import RuleReward


def load_scoring(settings: ScoringSettings, roles: Roles | None, names: Sequence[str]) -> Scoring:
    """Load every source that the settings name, as `policy.scoring.load_scoring` does without these two.

    Rules know what an answer should be from the response type that a prompt names, else from the guard, where
    there is one that judges prompts, and else from `is_harmful` of the prompt.

    Raises:
        ConfigError: The settings do not fit the constraints, or a source is missing.
        ModelError: A model was not trained for what is wanted of it, or rules beside another scorer.
    """
    settings.columns(names)  # a mistake in the settings is said before anything is loaded
    rules = None if settings.rules is None else _rules(settings, roles)
    if settings.guard is None:
        return scoring.load_scoring(settings, roles, names, Passed(None, rules))
    from equipoise.moderation.guard import load_guard
    from equipoise.pipeline.guarded import type_by_guard

    guard = load_guard(settings.guard, settings.device)
    guard.require("response")
    if rules is not None and "prompt" in guard.card.targets:
        rules.type_of = type_by_guard(guard, guard.policy, rules.rules)
    return scoring.load_scoring(settings, roles, names, Passed(guard, rules))


def _rules(settings: ScoringSettings, roles: Roles | None) -> "RuleReward":
    """Load the rules, which must have been fitted beside the scorer that gives the reward."""
    from equipoise.judges.rules import load_rules

    assert settings.rules is not None
    scorer = None
    if settings.reward == "scorer" and settings.maxmin is None:
        scorer = settings.reward_scorer or settings.scorer or (None if roles is None else roles.scorer_folder)
    return load_rules(settings.rules, scorer=scorer, alone=True, device=settings.device)
