"""The README.md of an exported folder: front matter that the hub reads, and a card for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from equipoise import __version__
from equipoise.config import to_yaml
from equipoise.data.export.formats import FORMATS
from equipoise.data.export.settings import ExportConfig
from equipoise.data.export.tally import Tally
from equipoise.data.sources import citations

_HUB_LICENCES = {
    "mit": "mit",
    "apache-2.0": "apache-2.0",
    "cc0-1.0": "cc0-1.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "odc-by": "odc-by",
    "odc-by-1.0": "odc-by",
    "gpl-3.0": "gpl-3.0",
    "agpl-3.0": "agpl-3.0",
    "unknown": "unknown",
}
"""Our licence, lower case -> the identifier that the hub knows it by."""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

_WARNING = """Some of these texts are offensive or harmful. They are meant for research and engineering that
makes models less harmful."""


def hub_card(config: ExportConfig, tally: Tally) -> str:
    """Return the README.md of an export: YAML front matter, then what is in it and what is not."""
    parts = [f"# {config.title}", _WARNING, config.description, _contents(config, tally)]
    columns = FORMATS[config.to].columns(config)
    if columns:
        rows = [(f"`{column.name}`", column.about) for column in columns]
        parts += ["## Columns", _table(("column", "holds"), rows), "What a record does not say is null."]
    parts += ["## Left out", _left_out(tally)]
    parts += ["## Licences", _counted("licence", _frequent(tally.licences))]
    parts += ["A row stays under the licence of its source; the strictest one binds the whole."]
    parts += ["## Where it comes from", _counted("source", _frequent(tally.sources))]
    parts += [_counted("labelled by", _frequent(tally.origins))]
    cited = citations(tally.sources)
    if cited:
        parts += ["Cite the sources:", "\n".join(f"- {name}: {text}." for name, text in cited.items())]
    body = "\n\n".join(part for part in parts if part)
    return f"---\n{to_yaml(_front_matter(config, tally))}---\n\n{body}\n"


def _front_matter(config: ExportConfig, tally: Tally) -> dict[str, Any]:
    total = sum(tally.rows.values())
    return {
        "pretty_name": config.title,
        **hub_licence(sorted(tally.licences)),
        "task_categories": [FORMATS[config.to].task],
        "size_categories": [next((name for size, name in _SIZES if total < size), "1M<n<10M")],
        "tags": ["safety", "alignment", "equipoise", config.to],
        "configs": [
            {
                "config_name": name,
                "data_files": [
                    {"split": split, "path": f"data/{split}.{config.file_format}"} for split in splits
                ],
            }
            for name, splits in _configs(tally).items()
        ],
    }


def _configs(tally: Tally) -> dict[str, list[str]]:
    """Return the splits by the hub's configurations: one for all, or one for each kind of record.

    The columns of a configuration must be the same in all of its splits.
    """
    if len(set(tally.kinds.values())) <= 1:
        return {"default": list(tally.rows)}
    found: dict[str, list[str]] = {}
    for split in tally.rows:
        found.setdefault(f"{tally.kinds[split].lower()}s", []).append(split)
    return found


def hub_licence(licences: Sequence[str]) -> dict[str, Any]:
    """Return the fields that tell the hub the licence: one it knows, several, or `other` with a name.

    >>> hub_licence(["CC-BY-NC-4.0"])
    {'license': 'cc-by-nc-4.0'}
    >>> hub_licence(["MIT", "own terms"])
    {'license': 'other', 'license_name': 'mit-and-own-terms'}
    """
    known = [_HUB_LICENCES.get(name.lower()) for name in licences]
    if all(known):
        return {"license": known[0] if len(known) == 1 else known}
    slugs = ("-".join(name.lower().split()) for name in licences)
    return {"license": "other", "license_name": "-and-".join(slugs)}


def _contents(config: ExportConfig, tally: Tally) -> str:
    form = FORMATS[config.to]
    lines = [f"Format `{config.to}`: {form.about}.", _counted("split", tally.rows, "rows")]
    chosen = [f"`{name}` {getattr(config, name)}" for name in form.choices]
    if chosen:
        lines.append(f"Choices: {', '.join(chosen)}.")
    lines.append(f"Written by equipoise {__version__} from {sum(tally.licences.values())} records.")
    return "\n\n".join(lines)


def _left_out(tally: Tally) -> str:
    if not tally.left_out:
        return "Nothing."
    rows = tally.left_out.most_common()
    return f"{_table(('reason', 'records or answers'), rows)}\n\nEach of them is listed in `left_out.jsonl`."


def _counted(what: str, counts: Mapping[str, int], unit: str = "records") -> str:
    return _table((what, unit), list(counts.items()))


def _frequent(counts: Counter[str]) -> dict[str, int]:
    """Return counts, the most frequent first; equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _table(header: tuple[str, str], rows: Sequence[tuple[str, object]]) -> str:
    lines = [header, ("---", "---"), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
