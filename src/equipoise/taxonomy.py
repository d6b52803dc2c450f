"""Harm taxonomies: the categories, their severity scale, and how one maps to another.

One YAML file is one taxonomy; head sizes, reports and checks follow from it. A checkpoint carries
its own copy, so a released file never changes: a change is a new `version`. A crosswalk to a list that is
no taxonomy here, such as the categories of an API, is a file of its own under `taxonomies/crosswalks`.
"""

from collections.abc import Iterable
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from equipoise.config import explain, read_yaml
from equipoise.errors import TaxonomyError, near


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SeverityLevel(_Frozen):
    """One step of the severity scale; its index in the list is the level."""

    name: str
    criterion: str


class Category(_Frozen):
    """One kind of harm."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    name: str
    """The official name; this is what records and reports show."""
    definition: str
    not_this: str
    """Near misses that do not belong here."""


class Taxonomy(_Frozen):
    """An ordered list of categories with a severity scale and crosswalks to other taxonomies."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    version: int = Field(ge=1)
    title: str = ""
    source: str = ""
    licence: str = "unknown"
    severities: tuple[SeverityLevel, ...] = Field(min_length=2)
    categories: tuple[Category, ...] = Field(min_length=1)
    crosswalks: dict[str, dict[str, tuple[str, ...]]] = {}
    """Other taxonomy -> our id -> its ids."""

    @model_validator(mode="after")
    def _consistent(self) -> "Taxonomy":
        for what in ("id", "name"):
            seen: set[str] = set()
            for category in self.categories:
                value = getattr(category, what)
                if value in seen:
                    raise ValueError(f"category {what} '{value}' stands twice")
                seen.add(value)
        ids = {category.id for category in self.categories}
        for other, mapping in self.crosswalks.items():
            for unknown in mapping.keys() - ids:
                raise ValueError(f"crosswalk to '{other}': no category '{unknown}' here")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Official names in head order."""
        return tuple(category.name for category in self.categories)

    def index(self, name: str) -> int:
        """Position of a category in head order; an unknown name raises TaxonomyError."""
        try:
            return self.names.index(name)
        except ValueError:
            known = f"{len(self.names)} categories of '{self.name}'"
            raise TaxonomyError(f"no category '{name}' among the {known}{near(name, self.names)}") from None

    def translate(self, names: Iterable[str], other: "Taxonomy") -> frozenset[str]:
        """Return the names in `other` that the crosswalk gives for our `names`."""
        if other.name not in self.crosswalks:
            known = ", ".join(self.crosswalks) or "none"
            raise TaxonomyError(f"'{self.name}' has no crosswalk to '{other.name}'; it has: {known}")
        mapping = self.crosswalks[other.name]
        theirs = {category.id: category.name for category in other.categories}
        ours = [self.categories[self.index(name)].id for name in names]
        found = [there for here in ours for there in mapping.get(here, ())]
        for there in found:
            if there not in theirs:
                place = f"'{self.name}': crosswalk to '{other.name}'"
                raise TaxonomyError(f"{place}: no category '{there}' there{near(there, theirs)}")
        return frozenset(theirs[there] for there in found)


class Target(_Frozen):
    """A category of somebody else's list that a crosswalk leads to."""

    id: str
    """As their interface writes it."""
    name: str
    aliases: tuple[str, ...] = ()
    """Other codes that the same owner uses for it."""


class Crosswalk(_Frozen):
    """How the categories of a taxonomy map to a list that is no taxonomy here, such as an API's.

    Overlap in the main, not an equivalence; a category without a counterpart has an empty line.
    """

    taxonomy: str
    other: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: int = Field(ge=1)
    title: str = ""
    source: str = ""
    licence: str = "unknown"
    targets: tuple[Target, ...] = Field(min_length=1)
    """All of their list, in their order."""
    unreachable: dict[str, str] = {}
    """Targets that our categories cannot tell, and why."""
    mapping: dict[str, tuple[str, ...]]
    """Our id -> their ids; one line for each category of ours."""

    @model_validator(mode="after")
    def _consistent(self) -> "Crosswalk":
        codes = [code for target in self.targets for code in (target.id, *target.aliases)]
        for code in codes:
            if codes.count(code) > 1:
                raise ValueError(f"target '{code}' stands twice")
        ids = [target.id for target in self.targets]
        reached = {there for many in self.mapping.values() for there in many}
        for there in [*sorted(reached), *self.unreachable]:
            if there not in ids:
                raise ValueError(f"no target '{there}' here{near(there, ids)}")
        for there in ids:
            if there in reached and there in self.unreachable:
                raise ValueError(f"target '{there}' is mapped to and said to be unreachable")
            if there not in reached and there not in self.unreachable:
                raise ValueError(f"target '{there}' is neither mapped to nor said to be unreachable")
        ours = [category.id for category in load_taxonomy(self.taxonomy).categories]
        for here in self.mapping:
            if here not in ours:
                raise ValueError(f"no category '{here}' in '{self.taxonomy}'{near(here, ours)}")
        for here in ours:
            if here not in self.mapping:
                raise ValueError(
                    f"category '{here}' has no line; an empty list says that it has no counterpart"
                )
        return self

    def translate(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the ids of the targets, in their order, for names of our categories."""
        taxonomy = load_taxonomy(self.taxonomy)
        ours = [taxonomy.categories[taxonomy.index(name)].id for name in names]
        found = {there for here in ours for there in self.mapping[here]}
        return tuple(target.id for target in self.targets if target.id in found)

    def target(self, code: str) -> Target:
        """Return a target by its id or an alias; an unknown one raises TaxonomyError."""
        known = {name: target for target in self.targets for name in (target.id, *target.aliases)}
        if code not in known:
            raise TaxonomyError(f"no target '{code}' in '{self.other}'{near(code, known)}")
        return known[code]


def built_in() -> list[str]:
    """Names of the taxonomies that ship with the package."""
    return _names_in("taxonomies")


def built_in_crosswalks() -> list[str]:
    """Names, `OURS-THEIRS`, of the crosswalks that ship in files of their own."""
    return _names_in("taxonomies/crosswalks")


@cache
def load_taxonomy(name: str) -> Taxonomy:
    """Load a built-in taxonomy by name, or a user's own from a path to a `.yaml` file."""
    path = _find("taxonomy", name, "taxonomies")
    return parse_taxonomy(read_yaml(path), str(path))


@cache
def load_crosswalk(name: str) -> Crosswalk:
    """Load a built-in crosswalk such as `pku19-openai13`, or a user's own from a path to a `.yaml` file."""
    path = _find("crosswalk", name, "taxonomies/crosswalks")
    try:
        return Crosswalk.model_validate(read_yaml(path))
    except ValidationError as exc:
        raise TaxonomyError(explain(str(path), Crosswalk, exc)) from exc


def parse_taxonomy(data: object, where: str) -> Taxonomy:
    """Check a taxonomy that was read from `where` (a file, or a checkpoint's copy)."""
    try:
        return Taxonomy.model_validate(data)
    except ValidationError as exc:
        raise TaxonomyError(explain(where, Taxonomy, exc)) from exc


def _names_in(folder: str) -> list[str]:
    entries = (resources.files("equipoise") / folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def _find(what: str, name: str, folder: str) -> Path:
    """Return the file of something built in by its name, or the path that was given."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        return path
    known = _names_in(folder)
    if name not in known:
        raise TaxonomyError(
            f"no {what} '{name}'{near(name, known)}; built in: {', '.join(known)}"
            " (or give a path to a .yaml file)"
        )
    return Path(str(resources.files("equipoise") / folder / f"{name}.yaml"))
