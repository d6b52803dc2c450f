"""A row of somebody else's table on its way to a record: which column became which field.

What is not taken by a source goes to `provenance`, and an error names the column as the file has it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from equipoise.data.io import parse_record
from equipoise.data.json_text import JsonError, load_json
from equipoise.data.rows import LineError, Row, column_names, file_format, show
from equipoise.errors import near
from equipoise.records import Record
from equipoise.taxonomy import Taxonomy, load_taxonomy

R = TypeVar("R", bound=Record)

RELEASES = ("pku19", "beavertails14")
"""Taxonomies that the PKU releases are labelled by, told apart by their category keys."""


class Flags(NamedTuple):
    """What a column of category flags says; all None where there is no such column."""

    categories: list[str] | None = None
    rated: list[str] | None = None
    """None where every category of the taxonomy was looked at."""
    taxonomy: str | None = None


class Columns:
    """The columns of one row, and which of them have been used."""

    def __init__(self, row: Row) -> None:
        """Start with no column taken."""
        self.row = row
        self._is_csv = _format_of(row) == "csv"
        self._is_flat = _format_of(row) != "jsonl"
        self._column_of: dict[str, str] = {}
        self._taken: set[str] = set()

    def text(self, name: str, to: str | None = None) -> Any:
        """Take a column of text for the field `to`; an empty CSV cell is an empty text."""
        value = self._take(name, to or name)
        return "" if value is None and self._is_csv and name in self.row.values else value

    def label(self, *names: str, to: str) -> Any:
        """Take the first of the columns that holds anything, for the field `to`; None if none does."""
        for name in names:
            value = self._take(name, to) if name in self.row.values else None
            if value is not None:
                return self._typed(value)
        return None

    def flags(self, *names: str, to: str) -> Flags:
        """Take a mapping of category -> true or false; its keys tell the taxonomy.

        Raises:
            LineError: a key that no release has, or keys of more than one release.
        """
        value = self.label(*names, to=to)
        if value is None:
            return Flags()
        if not isinstance(value, dict) or not value:
            raise self.error(to, f"expected category names with true or false, got {show(value)}")
        taxonomy = self._release(to, value)
        for name, flag in value.items():
            if not isinstance(flag, bool | None):
                raise self.error(f"{to}.{name}", f"expected true or false, got {show(flag)}")
        names = taxonomy.names
        rated = [name for name in names if value.get(name) is not None]
        flagged = [name for name in rated if value[name]]
        return Flags(flagged, None if len(rated) == len(names) else rated, taxonomy.name)

    def error(self, field: str, what: str) -> LineError:
        """Make an error at a field of the record, named as the file names it."""
        own = self.row.values.get("id")
        return LineError(
            self.row.path, self.row.line, self._original(field), what, own if isinstance(own, str) else None
        )

    def require(self, *names: str) -> None:
        """Refuse a row that lacks one of the columns."""
        for name in names:
            if name not in self.row.values:
                raise self.error(name, f"no such column; it has: {column_names(self.row.values)}")

    def rest(self) -> dict[str, Any]:
        """Return the columns that nobody took; empty cells of Parquet and CSV are left out."""
        left = {name: item for name, item in self.row.values.items() if name not in self._taken}
        return {name: item for name, item in left.items() if item is not None} if self._is_flat else left

    def build(self, kind: type[R], values: Mapping[str, Any]) -> R:
        """Make the record; values that are None are left to the record's defaults."""
        given = {name: value for name, value in values.items() if value is not None}
        try:
            return parse_record(self.row._replace(values=given), kind)
        except LineError as error:
            raise self.error(error.field, error.what) from None

    def _take(self, name: str, to: str) -> Any:
        self._taken.add(name)
        self._column_of[to] = name
        return self.row.values.get(name)

    def _original(self, field: str) -> str:
        """Put the column's name in place of the longest part of the field that came from one."""
        for to in sorted(self._column_of, key=len, reverse=True):
            if field == to or field.startswith(to + "."):
                return self._column_of[to] + field[len(to) :]
        return field

    def _typed(self, value: Any) -> Any:
        """Give a cell of CSV its type, and a whole number that pandas made a float its own."""
        if self._is_flat and isinstance(value, float) and value.is_integer():
            return int(value)
        if self._is_csv and isinstance(value, str):
            try:
                return load_json(value.lower() if value in {"True", "False"} else value)
            except JsonError:
                return value
        return value

    def _release(self, to: str, names: Iterable[str]) -> Taxonomy:
        found = set(names)
        taxonomies = [load_taxonomy(name) for name in RELEASES]
        best = max(taxonomies, key=lambda taxonomy: len(found.intersection(taxonomy.names)))
        known = best.names
        for name in sorted(found.difference(known)):
            place = f"{len(known)} categories of '{best.name}'"
            raise self.error(to, f"no category '{name:.60}' among the {place}{near(name, known)}")
        return best


def _format_of(row: Row) -> str:
    """Return the format a row came in; rows of the hub are typed as those of Parquet are."""
    return "parquet" if row.path.startswith("hub:") else file_format(Path(row.path))
