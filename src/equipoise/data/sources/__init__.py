"""Public data sets as records: one function per source, in a plain table.

To add one, write `def name(row: Row) -> Record` in a file here and list it in `SOURCES`. An empty id is
filled with a hash of the texts, so that the same row has the same id wherever it is read.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from equipoise.data.identity import content_id
from equipoise.data.rows import LineError, OnBad, Row, fail, plain
from equipoise.data.sources.pku import pku_dual, pku_qa, pku_single
from equipoise.data.sources.table import table_row
from equipoise.errors import ConfigError, DataError, MissingExtraError, near
from equipoise.records import Exchange, Pair, Prompt, Record


class Source(NamedTuple):
    """How to read a data set, and under which licence its owner gives it."""

    convert: Callable[[Row], Record]
    licence: str
    about: str


SOURCES: dict[str, Source] = {
    "pku-saferlhf": Source(pku_dual, "CC-BY-NC-4.0", "pairs ranked for help and for harm separately"),
    "pku-saferlhf-single": Source(pku_single, "CC-BY-NC-4.0", "pairs with one overall preference"),
    "pku-saferlhf-qa": Source(pku_qa, "CC-BY-NC-4.0", "answers with category and severity labels"),
    "jsonl": Source(table_row, "unknown", "rows of prompts, responses or pairs; our own records"),
}


def find_source(name: str) -> Source:
    """Return a source by name; an unknown one raises ConfigError with the near name."""
    if name not in SOURCES:
        raise ConfigError(f"no source '{name}'{near(name, SOURCES)}; known: {', '.join(SOURCES)}, builtin")
    return SOURCES[name]


def import_records(
    name: str, rows: Iterable[Row], *, licence: str | None = None, on_bad: OnBad = fail
) -> Iterator[Record]:
    """Yield the records of a source's rows.

    Args:
        name: A key of `SOURCES`.
        rows: Its rows, of one release and one kind.
        licence: Overrides what the source and the rows say.
        on_bad: Called with one error per bad row.

    Raises:
        DataError: the rows are of more than one kind or release; the message names the first that differs.
    """
    source = find_source(name)
    first: Record | None = None
    seen: dict[str, int] = {}
    for row in rows:
        try:
            record = source.convert(row)
        except LineError as error:
            on_bad(error)
            continue
        first = first or record
        _refuse_mixture(row, first, record)
        own = licence or (record.licence if record.licence != "unknown" else source.licence)
        yield record.model_copy(update={"id": record.id or _fresh_id(name, record, seen), "licence": own})


def hub_rows(
    hub_id: str, *, split: str = "train", subset: str | None = None, revision: str | None = None
) -> Iterator[Row]:
    """Yield the rows of a data set on the Hugging Face hub, numbered from 1; needs the extra `hub`."""
    try:
        from datasets import load_dataset
    except ImportError as exc:
        raise MissingExtraError(f"reading '{hub_id}' from the hub", "hub") from exc
    try:
        data = load_dataset(hub_id, subset, split=split, revision=revision)
    except (OSError, ValueError) as exc:  # no network, no such data set, no such split
        reason = str(exc).strip().split("\n")[0][:200]
        raise DataError(f"'{hub_id}': no file here and not to be had from the hub: {reason}") from exc
    for number, values in enumerate(data, start=1):
        yield Row(f"hub:{hub_id}", number, plain(values))


def looks_like_hub_id(text: str) -> bool:
    """Whether a text that is no path here may name a data set on the hub, as `OWNER/NAME`."""
    parts = text.split("/")
    return len(parts) == 2 and all(parts) and not Path(text).suffix and not text.startswith((".", "~"))


def _fresh_id(prefix: str, record: Record, seen: dict[str, int]) -> str:
    """Give the same texts, when they come again, an id of their own."""
    assert isinstance(record, Prompt | Exchange | Pair)
    base = content_id(prefix, record)
    seen[base] = seen.get(base, 0) + 1
    return base if seen[base] == 1 else f"{base}-{seen[base]}"


def _refuse_mixture(row: Row, first: Record, record: Record) -> None:
    where = f"{row.path}:{row.line}"
    if type(record) is not type(first):
        names = f"{type(record).__name__} after {type(first).__name__}"
        raise DataError(f"{where}: line: rows of more than one kind, got {names}; import them one by one")
    ours, theirs = getattr(record, "taxonomy", None), getattr(first, "taxonomy", None)
    if ours != theirs:
        what = f"a row of taxonomy '{ours}' in a file that began with '{theirs}'"
        raise DataError(f"{where}: taxonomy: {what}; the releases are never mixed, import them one by one")
