"""When a text counts as unsafe: thresholds in one YAML file, of which several can be in use at once.

    name: school
    about: for pupils
    unsafe: {prompt: 0.4, response: 0.3}    # flagged from this P(unsafe) on; one number is for both
    categories: {Sexual Content: 0.1}       # or from this P(unsafe and of the category) on
    severity: {3: 0.2}                      # or from this P(severity >= 3) on
    review: [0.2, 0.5]                      # P(unsafe) from 0.2 to below 0.5: a person should look too
    shadow: true                            # judge and log, but block nothing

Probabilities are those that a verdict shows. A guard that was not calibrated has one policy, `default`,
which is the threshold in its card; one that was has those of its folder `policies`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from equipoise.config import Config, parse_config, read_yaml
from equipoise.errors import ConfigError, TaxonomyError, near
from equipoise.models.checkpoints import load_card
from equipoise.models.guard import GuardCard, Target
from equipoise.taxonomy import Taxonomy

FOLDER = "policies"
"""Where a calibrated guard's policies lie in its folder."""

DEFAULT = "default"
"""The policy of a guard that was not calibrated."""

FIRST = "moderate"
"""The policy that is used where none is named, if the folder has it."""

Probability = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]

Level = Annotated[int, Field(ge=1)]


class Thresholds(Config):
    """P(unsafe) from which a text is flagged: a prompt by itself, a response in its context."""

    prompt: Probability
    response: Probability


def _for_both(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"prompt": value, "response": value} if is_number else value


class Policy(Config):
    """Thresholds under a name; a text is flagged as soon as it reaches one of them."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    about: str = ""
    unsafe: Annotated[Thresholds | None, BeforeValidator(_for_both)] = None
    """On P(unsafe); None flags by category and severity alone."""
    categories: dict[str, Probability] = {}
    """On P(unsafe and of the category), for each category that has a threshold of its own."""
    severity: dict[Level, Probability] = {}
    """On P(severity >= level)."""
    review: tuple[Probability, Probability] | None = None
    """P(unsafe) from the first to below the second asks for a person; the verdict stands nevertheless."""
    shadow: bool = False
    """Its verdicts are told and logged, and nothing is blocked by them."""
    fitted: dict[str, JsonValue] | None = None
    """How the thresholds were found, where they were fitted."""

    @model_validator(mode="after")
    def _flags_something(self) -> Self:
        if self.unsafe is None and not self.categories and not self.severity:
            raise ValueError(
                "no threshold, so nothing would be flagged; expected unsafe, categories or severity"
            )
        if self.review is not None and not self.review[0] < self.review[1]:
            raise ValueError(f"review: expected the lower end first, got {list(self.review)}")
        return self

    @property
    def enforced(self) -> bool:
        """Whether an unsafe verdict blocks; in shadow mode it is only told."""
        return not self.shadow

    def flags(self, target: Target, at_least: Sequence[float], categories: Mapping[str, float]) -> bool:
        """Return whether a text is unsafe.

        Args:
            target: Whether it is a prompt or a response.
            at_least: P(severity >= 1), which is P(unsafe), P(severity >= 2), ...
            categories: P(unsafe and of the category).
        """
        return (
            (self.unsafe is not None and at_least[0] >= getattr(self.unsafe, target))
            or any(categories[name] >= least for name, least in self.categories.items())
            or self.reached(at_least) > 0
        )

    def reached(self, at_least: Sequence[float]) -> int:
        """Return the highest severity whose own threshold is reached, 0 where none is."""
        return max((k for k, least in self.severity.items() if at_least[k - 1] >= least), default=0)

    def asks(self, unsafe: float) -> bool:
        """Return whether a person should look at a text with this P(unsafe)."""
        return self.review is not None and self.review[0] <= unsafe < self.review[1]

    def check(self, taxonomy: Taxonomy, where: str) -> None:
        """Raise ConfigError for a category or a severity that the taxonomy does not have."""
        try:
            for name in self.categories:
                taxonomy.index(name)
        except TaxonomyError as exc:
            raise ConfigError(f"{where}: categories: {exc}") from exc
        highest = len(taxonomy.severities) - 1
        for level in self.severity:
            if level > highest:
                raise ConfigError(
                    f"{where}: severity: not on the scale of '{taxonomy.name}', got {level};"
                    f" expected 1 to {highest}"
                )


def default_policy(card: GuardCard) -> Policy:
    """Return the threshold that a guard was trained with, as a policy."""
    return Policy(
        name=DEFAULT,
        about="The guard's own threshold.",
        unsafe=Thresholds(prompt=card.unsafe_threshold, response=card.unsafe_threshold),
    )


def load_policy(path: Path, taxonomy: Taxonomy | None = None) -> Policy:
    """Read a policy's file; what does not fit it, or the taxonomy if given, raises ConfigError."""
    policy = parse_config(Policy, read_yaml(path), str(path))
    if taxonomy is not None:
        policy.check(taxonomy, str(path))
    return policy


def load_policies(places: Path | Sequence[Path], taxonomy: Taxonomy | None = None) -> dict[str, Policy]:
    """Return policies by name, of guard folders and of YAML files, in this order; the first is the default.

    A guard's own are `moderate` and then the others by name, or `default` alone if it was not calibrated.

    Args:
        places: Folders of guards, and files of policies.
        taxonomy: Whose categories the files may name; that of the first folder where None.

    Raises:
        ConfigError: A file that is no policy, one that names a category the guard does not know, or two
            policies of one name.
    """
    read: list[tuple[str, Policy]] = []
    for place in [places] if isinstance(places, Path) else places:
        if place.is_dir():
            card = load_card(place, GuardCard)
            taxonomy = taxonomy or card.taxonomy
            read += _in_guard(place, card)
        else:
            read.append((str(place), load_policy(place)))
    found: dict[str, Policy] = {}
    for where, policy in read:
        if policy.name in found:
            raise ConfigError(f"{where}: name: there is a policy '{policy.name}' already; expected another")
        if taxonomy is not None:
            policy.check(taxonomy, where)
        found[policy.name] = policy
    return found


def find_policy(given: str, policies: Mapping[str, Policy], taxonomy: Taxonomy) -> Policy:
    """Return a policy by its name, or from a path to a `.yaml` file; anything else raises ConfigError."""
    if given in policies:
        return policies[given]
    path = Path(given)
    if path.suffix in {".yaml", ".yml"}:
        return load_policy(path, taxonomy)
    raise ConfigError(
        f"no policy '{given}'{near(given, policies)}; this guard has: {', '.join(policies)}"
        " (or give a path to a .yaml file)"
    )


def _in_guard(folder: Path, card: GuardCard) -> list[tuple[str, Policy]]:
    read = [(str(path), load_policy(path)) for path in sorted((folder / FOLDER).glob("*.yaml"))]
    read.sort(key=lambda item: (item[1].name != FIRST, item[1].name))
    return read or [(str(folder), default_policy(card))]
