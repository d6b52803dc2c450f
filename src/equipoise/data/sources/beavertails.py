"""BeaverTails (Ji et al. 2023): answers with 14 categories, and the prompts of its evaluation set."""

from equipoise.data.rows import Row, show
from equipoise.data.sources.columns import Columns
from equipoise.errors import near
from equipoise.records import Exchange, Prompt, Record
from equipoise.taxonomy import load_taxonomy

_SOURCE = "beavertails"
_TAXONOMY = "beavertails14"


def beavertails(row: Row) -> Record:
    """Read an answer with `category` (14 flags) and `is_safe`, or a prompt with one `category` by name."""
    return _answer(Columns(row)) if "response" in row.values else _prompt(Columns(row))


def _answer(columns: Columns) -> Exchange:
    columns.require("prompt", "category", "is_safe")
    flags = columns.flags("category", to="categories")
    values = {
        "id": "",
        "prompt": columns.text("prompt"),
        "response": columns.text("response"),
        "is_safe": columns.label("is_safe", to="is_safe"),
        "categories": flags.categories,
        "rated": flags.rated,
        "taxonomy": flags.taxonomy,
    }
    origin = {"source": _SOURCE, "label_origin": "human", "provenance": columns.rest()}
    return columns.build(Exchange, values | origin)


def _prompt(columns: Columns) -> Prompt:
    columns.require("prompt", "category")
    name = columns.label("category", to="categories")
    names = load_taxonomy(_TAXONOMY).names
    if name not in names:
        hint = near(name, names) if isinstance(name, str) else ""
        raise columns.error(
            "categories", f"no category {show(name)} among the {len(names)} of '{_TAXONOMY}'{hint}"
        )
    values = {"id": "", "prompt": columns.text("prompt"), "is_harmful": True, "categories": [name]}
    origin = {"source": _SOURCE, "label_origin": "authors", "provenance": columns.rest()}
    return columns.build(Prompt, values | origin | {"taxonomy": _TAXONOMY})
