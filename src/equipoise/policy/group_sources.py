"""Where the rewards of groups come from: sources of one reward each, or a mixture that knows all of them."""

from collections.abc import Sequence
from pathlib import Path

from equipoise.errors import ModelError
from equipoise.models.checkpoints import load_card
from equipoise.models.features import TextPair
from equipoise.models.mixture import MixtureCard, MixtureModel, load_mixture
from equipoise.models.scorer import read_scorer_card
from equipoise.policy.scoring_settings import FUNCTION, GROUP_KINDS, GroupSettings, ScoringSettings
from equipoise.policy.sources import ByFunction, ByScorer, Given, Source, from_folder
from equipoise.records import Exchange, text_of
from equipoise.rewards.learned import load_scorer


def group_names(settings: GroupSettings) -> tuple[str, ...]:
    """Return the groups in their order; those of a mixture are `group1`, `group2`, ..., as it has them."""
    if settings.mixture is None:
        return tuple(settings.groups)
    return tuple(f"group{i + 1}" for i in range(len(load_card(settings.mixture, MixtureCard).shares)))


def check_groups(settings: ScoringSettings) -> None:
    """Read what the folders say of themselves; one that gives no reward to a group raises ModelError."""
    if settings.maxmin is None:
        return
    group_names(settings.maxmin)
    for name, source in settings.maxmin.groups.items():
        if _is_folder(source) and "reward" not in (trained := read_scorer_card(Path(source)).trained):
            where = f"scoring.maxmin.groups.{name}: {source}"
            raise ModelError(
                f"{where}: gives no reward; it was trained for: {', '.join(trained) or 'nothing'}"
            )


def _is_folder(source: str) -> bool:
    return source not in GROUP_KINDS and not FUNCTION.fullmatch(source)


def load_groups(settings: ScoringSettings) -> list[Source]:
    """Load what gives rewards to groups and nothing else: a mixture, scorers' folders, and functions.

    Raises:
        ConfigError: There is no such function.
        ModelError: A folder holds something else, or a scorer without a reward.
    """
    if settings.maxmin is None:
        return []
    if settings.maxmin.mixture is not None:
        model = load_mixture(settings.maxmin.mixture, settings.device)
        return [ByMixture(model, group_names(settings.maxmin))]
    sources: list[Source] = []
    for source in dict.fromkeys(settings.rewards):
        names = settings.groups_of(source)
        if FUNCTION.fullmatch(source):
            sources.append(seen_by(names, ByFunction(source, None)))
        elif _is_folder(source):
            scorer = load_scorer(Path(source), settings.device)
            alone = ByScorer(from_folder(scorer), scorer.card, reward=True, costs={}, where=source)
            sources.append(seen_by(names, alone))
    return sources


def seen_by(groups: Sequence[str], source: Source) -> Source:
    """Return a source whose reward is that in the eyes of groups."""

    def ask(exchanges: Sequence[Exchange]) -> Given:
        given = source(exchanges)
        if given.reward is None:
            raise ValueError(f"no reward for {', '.join(groups)}; expected a source that gives one")
        return given._replace(reward=None, groups=dict.fromkeys(groups, given.reward))

    return ask


class ByMixture:
    """A mixture's rewards in the eyes of its groups."""

    def __init__(self, model: MixtureModel, names: Sequence[str]) -> None:
        """Ask a mixture, whose groups get these names."""
        self._model, self._names = model, tuple(names)

    def __call__(self, exchanges: Sequence[Exchange]) -> Given:
        """Return every group's rewards of each."""
        found = self._model([TextPair(text_of(e.prompt), e.response) for e in exchanges])
        return Given(groups=dict(zip(self._names, found.unbind(dim=1), strict=True)))
