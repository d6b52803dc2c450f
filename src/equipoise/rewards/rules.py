"""Rewards made of rules: what an answer is like in propositions, and what each of them is worth.

Mu et al. 2024 (rule-based rewards). A grader says how probable each proposition is of an answer; the answer's
response type (decline, decline with care, comply) decides by what weights they are added; the sum goes on
top of a learned reward. The propositions are a YAML file (`rule_sets/`), so a team's own rules are data.

Shapes: N answers, P propositions.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from equipoise.config import Config, parse_config, read_yaml
from equipoise.errors import ConfigError, DataError, ModelError, near
from equipoise.protocols import Reward
from equipoise.records import Exchange, Score

AnswerClass = Literal["ideal", "minimum_style", "unacceptable", "illogical", "disallowed"]

CLASSES: tuple[AnswerClass, ...] = ("ideal", "minimum_style", "unacceptable", "illogical", "disallowed")
"""From the best to the worst, whatever the response type."""

PROPOSITIONS, RESPONSE_TYPE, ANSWER_CLASS = "propositions", "response_type", "class"
"""Keys of an exchange's `provenance`: what holds of the answer, what it should be, and what it is."""

Grades = NDArray[np.float64]
"""[N, P] probability of each proposition."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class Grader(Protocol):
    """Say how probable each proposition of a rule set is."""

    def __call__(self, exchanges: Sequence[Exchange]) -> Grades:
        """Return the grades of each answer in the context of its prompt, [N, P]."""
        ...


class Proposition(Config):
    """Something that is true of an answer or not."""

    name: Name
    kind: str = ""
    """What it is about, for tables."""
    question: str
    """What a language model is asked; yes means that it holds."""
    also: tuple[str, ...] = ()
    """Names of the same thing in labelled data."""


class Condition(Config):
    """What must hold of an answer; nothing given holds always."""

    all: tuple[str, ...] = ()
    any: tuple[str, ...] = ()
    """One of these at least."""
    none: tuple[str, ...] = ()

    def holds(self, true: frozenset[str]) -> bool:
        """Whether it holds where exactly these propositions are true."""
        one = not self.any or bool(true.intersection(self.any))
        return one and true.issuperset(self.all) and true.isdisjoint(self.none)

    @property
    def names(self) -> tuple[str, ...]:
        """The propositions that it speaks of."""
        return self.all + self.any + self.none


class ResponseType(Config):
    """What answers to one kind of request should be."""

    about: str = ""
    also: tuple[str, ...] = ()
    ideal: Condition
    minimum_style: Condition
    illogical: Condition
    disallowed: Condition

    def class_of(self, true: frozenset[str]) -> AnswerClass:
        """Return the class of an answer of which exactly these propositions are true."""
        checks: tuple[AnswerClass, ...] = ("disallowed", "illogical", "ideal", "minimum_style")
        return next((name for name in checks if getattr(self, name).holds(true)), "unacceptable")

    def sign(self, proposition: str) -> int:
        """1 for what an ideal answer must have, -1 for what it must not or what makes it worse, else 0."""
        if proposition in self.ideal.all:
            return 1
        bad = (*self.ideal.none, *self.illogical.any, *self.disallowed.any)
        return -1 if proposition in bad else 0


class RuleSet(Config):
    """Propositions, and for each response type the classes of answers in terms of them."""

    name: str
    version: int = 1
    propositions: Annotated[tuple[Proposition, ...], Field(min_length=1)]
    response_types: Annotated[dict[Name, ResponseType], Field(min_length=1)]
    harmful: str
    """Response type of a prompt that asks for harm."""
    harmless: str
    """Response type of any other."""

    @model_validator(mode="after")
    def _speaks_of_what_there_is(self) -> Self:
        called = [name for p in self.propositions for name in (p.name, *p.also)]
        called_types = [name for key, t in self.response_types.items() for name in (key, *t.also)]
        for names, what in ((called, "propositions"), (called_types, "response_types")):
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"{what}: '{twice}' is named twice")
        for key, kind in self.response_types.items():
            for place in ("ideal", "minimum_style", "illogical", "disallowed"):
                condition: Condition = getattr(kind, place)
                for name in condition.names:
                    if name not in self.names:
                        where = f"response_types.{key}.{place}"
                        raise ValueError(f"{where}: no proposition '{name}'{near(name, self.names)}")
                if place in ("illogical", "disallowed") and not condition.names:
                    raise ValueError(f"response_types.{key}.{place}: empty, so it would hold of every answer")
        for place, name in (("harmful", self.harmful), ("harmless", self.harmless)):
            if name not in self.response_types:
                raise ValueError(f"{place}: no response type '{name}'{near(name, self.response_types)}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the propositions, in the order of grades."""
        return tuple(p.name for p in self.propositions)

    def labels(self, exchange: Exchange) -> NDArray[np.float64]:
        """Return what is labelled of an answer, [P]: 1 true, 0 false, NaN not labelled.

        Raises:
            DataError: `provenance.propositions` is missing, or has a value that is neither true nor false.
        """
        where = f"{exchange.id}: provenance.{PROPOSITIONS}"
        given = exchange.provenance.get(PROPOSITIONS)
        if not isinstance(given, dict):
            raise DataError(f"{where}: expected a mapping of propositions to true or false")
        found = np.full(len(self.names), np.nan)
        for place, proposition in enumerate(self.propositions):
            value = next((given[n] for n in (proposition.name, *proposition.also) if n in given), None)
            if not isinstance(value, bool | None):
                raise DataError(f"{where}: {proposition.name}: expected true or false, got {value!r:.60}")
            if value is not None:
                found[place] = value
        return found

    def type_named(self, name: object, where: str) -> str:
        """Return the response type that goes by a name; one that there is not raises DataError."""
        known = {n: key for key, t in self.response_types.items() for n in (key, *t.also)}
        if not isinstance(name, str) or name not in known:
            hint = near(name, known) if isinstance(name, str) else ""
            raise DataError(f"{where}: no response type {name!r:.60}; known: {', '.join(known)}{hint}")
        return known[name]

    def type_said(self, provenance: Mapping[str, object], is_harmful: bool | None) -> str | None:
        """Return the response type that a prompt calls for by what it says of itself.

        It is the one that `provenance` names, else that of harmful or of harmless prompts; None where it says
        neither. A name that there is not raises DataError.
        """
        if RESPONSE_TYPE in provenance:
            return self.type_named(provenance[RESPONSE_TYPE], f"provenance.{RESPONSE_TYPE}")
        if is_harmful is None:
            return None
        return self.harmful if is_harmful else self.harmless

    def type_of(self, exchange: Exchange) -> str:
        """Return the response type that an exchange calls for, as `type_said`.

        Raises:
            DataError: It says nothing, or names one that there is not.
        """
        try:
            found = self.type_said(exchange.provenance, exchange.prompt_is_harmful)
        except DataError as exc:
            raise DataError(f"{exchange.id}: {exc}") from exc
        if found is None:
            raise DataError(
                f"{exchange.id}: the response type is not known;"
                f" expected provenance.{RESPONSE_TYPE} or prompt_is_harmful"
            )
        return found


class TypeOf(Protocol):
    """Say what answers to the prompts of some exchanges should be."""

    def __call__(self, exchanges: Sequence[Exchange]) -> list[str]:
        """Return the response type of each, in order."""
        ...


class RuleScore(NamedTuple):
    """A score and what it is made of."""

    total: Score
    """Reward and rules together; higher is better."""
    response_type: str
    answer_class: AnswerClass
    """By the propositions whose grade is above one half."""
    parts: dict[str, float]
    """What each proposition adds; those that add nothing are left out."""


class RuleReward:
    """A `protocols.Reward`: weighted propositions on top of a reward, higher is better."""

    def __init__(
        self,
        rules: RuleSet,
        grader: Grader,
        weights: Mapping[str, Sequence[float]],
        *,
        reward: Reward | None = None,
        type_of: TypeOf | None = None,
    ) -> None:
        """Put rules and weights together.

        Args:
            rules: The propositions and response types.
            grader: Says what is true of an answer.
            weights: Response type -> weight of each proposition [P], as `rule_fit.fit_weights` gives them.
            reward: What the rules are added to; 0 where None.
            type_of: What answers should be; `rules.type_of` of each exchange where None.
        """
        for key in rules.response_types:
            if len(weights.get(key, ())) != len(rules.names):
                got = f"got {len(weights.get(key, ()))} of '{key}'"
                raise ModelError(f"weights: expected one per proposition ({len(rules.names)}), {got}")
        self.rules, self.grader, self.reward = rules, grader, reward
        self.type_of: TypeOf = type_of or (lambda exchanges: [rules.type_of(e) for e in exchanges])
        self.weights = {key: np.asarray(weights[key], dtype=np.float64) for key in rules.response_types}

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Return the total of each exchange, in order."""
        return [found.total for found in self.explain(exchanges)]

    def explain(self, exchanges: Sequence[Exchange]) -> list[RuleScore]:
        """Return totals with their parts.

        Raises:
            ModelError: A grade that is no number: an answer that was not graded is not a good one.
        """
        if not exchanges:
            return []
        grades = np.asarray(self.grader(exchanges))
        if not np.isfinite(grades).all():
            raise ModelError("rules: a grade is not finite; expected a probability of every proposition")
        base = [0.0] * len(exchanges)
        if self.reward is not None:
            base = [-score.harm for score in self.reward(exchanges)]
        types = self.type_of(exchanges)
        return [self._score(*each) for each in zip(grades, types, base, strict=True)]

    def _score(self, grades: Grades, response_type: str, base: float) -> RuleScore:
        parts = grades * self.weights[response_type]
        true = frozenset(name for name, p in zip(self.rules.names, grades, strict=True) if p > 0.5)
        return RuleScore(
            Score(base + float(parts.sum()), "higher_is_better"),
            response_type,
            self.rules.response_types[response_type].class_of(true),
            {name: float(part) for name, part in zip(self.rules.names, parts, strict=True) if part},
        )


def load_rule_set(name_or_path: str) -> RuleSet:
    """Load a built-in rule set by name (`style`), or a user's own from a path to a `.yaml` file."""
    path = Path(name_or_path)
    if path.suffix in {".yaml", ".yml"}:
        return parse_config(RuleSet, read_yaml(path), name_or_path)
    folder = resources.files("equipoise") / "rewards" / "rule_sets"
    known = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    if name_or_path not in known:
        raise ConfigError(
            f"no rule set '{name_or_path}'{near(name_or_path, known)}; built in: {', '.join(known)}"
            " (or give a path to a .yaml file)"
        )
    return parse_config(RuleSet, read_yaml(Path(str(folder / f"{name_or_path}.yaml"))), name_or_path)
