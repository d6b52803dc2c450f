"""Harm taxonomies: the categories, their severity scale, and how one maps to another.

One YAML file is one taxonomy; head sizes, reports and checks follow from it. A checkpoint carries
its own copy, so a released file never changes: a change is a new `version`.
"""

from collections.abc import Iterable
from functools import cache
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

    @property
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


def built_in() -> list[str]:
    """Names of the taxonomies that ship with the package."""
    folder = resources.files("equipoise") / "taxonomies"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


@cache
def load_taxonomy(name: str) -> Taxonomy:
    """Load a built-in taxonomy by name, or a user's own from a path to a `.yaml` file."""
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        if name not in built_in():
            raise TaxonomyError(
                f"no taxonomy '{name}'{near(name, built_in())}; built in: {', '.join(built_in())}"
                " (or give a path to a .yaml file)"
            )
        path = Path(str(resources.files("equipoise") / "taxonomies" / f"{name}.yaml"))
    return parse_taxonomy(read_yaml(path), str(path))


def parse_taxonomy(data: object, where: str) -> Taxonomy:
    """Check a taxonomy that was read from `where` (a file, or a checkpoint's copy)."""
    try:
        return Taxonomy.model_validate(data)
    except ValidationError as exc:
        raise TaxonomyError(explain(where, Taxonomy, exc)) from exc
