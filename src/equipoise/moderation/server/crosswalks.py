"""From the guard's categories to those of a protocol that has a list of its own."""

from typing import NamedTuple

from equipoise.errors import TaxonomyError
from equipoise.protocols import Verdict
from equipoise.taxonomy import Crosswalk, Taxonomy, built_in_crosswalks, load_crosswalk


class Translation(NamedTuple):
    """Where each category of a guard leads in somebody else's list."""

    targets: tuple[str, ...]
    """All of their list, in their order."""
    mapping: dict[str, frozenset[str]]
    """Our name -> their ids; empty where there is no counterpart."""
    via: str | None
    """The taxonomy in between, where there is no direct crosswalk; `none` where there is no way at all."""
    reasons: dict[str, str]
    """Why a target cannot be told, where the crosswalk says it."""

    @property
    def unreachable(self) -> dict[str, str]:
        """Targets that no category of the guard leads to, and why; their score is always 0."""
        reached = {there for many in self.mapping.values() for there in many}
        unsaid = "no category of this guard leads to it"
        return {t: self.reasons.get(t, unsaid) for t in self.targets if t not in reached}

    @property
    def without_counterpart(self) -> list[str]:
        """Categories of the guard that the list has no word for."""
        return [name for name, there in self.mapping.items() if not there]

    def flagged(self, verdict: Verdict) -> list[str]:
        """Return the targets of a verdict's categories, in the list's order."""
        found = {there for name in verdict.categories for there in self.mapping[name]}
        return [target for target in self.targets if target in found]

    def scores(self, verdict: Verdict) -> dict[str, float]:
        """Return for each target the highest probability of a category that leads to it, else 0."""
        found = dict.fromkeys(self.targets, 0.0)
        for name, probability in verdict.category_probabilities.items():
            for there in self.mapping[name]:
                found[there] = max(found[there], probability)
        return found

    def described(self) -> dict[str, object]:
        """Return what a client should know of the translation."""
        return {
            "unreachable": self.unreachable,
            "without_counterpart": self.without_counterpart,
            "via": self.via,
        }


def translation(taxonomy: Taxonomy, other: str) -> Translation:
    """Return the way from a guard's taxonomy to another list, such as `openai13`.

    It is that of the crosswalk file `TAXONOMY-OTHER`, or leads through another taxonomy that has one.
    """
    direct = _crosswalk(taxonomy.name, other)
    if direct is not None:
        return Translation(
            _ids(direct),
            {c.name: frozenset(direct.mapping.get(c.id, ())) for c in taxonomy.categories},
            via=None,
            reasons=direct.unreachable,
        )
    for between, ours in taxonomy.crosswalks.items():
        onward = _crosswalk(between, other)
        if onward is not None:
            mapping = {
                c.name: frozenset(there for b in ours.get(c.id, ()) for there in onward.mapping.get(b, ()))
                for c in taxonomy.categories
            }
            return Translation(_ids(onward), mapping, between, onward.unreachable)
    targets = _ids(load_crosswalk(_any_to(other)))
    return Translation(targets, {name: frozenset() for name in taxonomy.names}, "none", {})


def _crosswalk(taxonomy: str, other: str) -> Crosswalk | None:
    name = f"{taxonomy}-{other}"
    return load_crosswalk(name) if name in built_in_crosswalks() else None


def _any_to(other: str) -> str:
    for name in built_in_crosswalks():
        if name.endswith(f"-{other}"):
            return name
    raise TaxonomyError(f"no crosswalk leads to '{other}'")


def _ids(crosswalk: Crosswalk) -> tuple[str, ...]:
    return tuple(target.id for target in crosswalk.targets)
