"""A data card, written by the program from what the records hold. No text of a record is shown."""

from collections.abc import Mapping, Sequence

from equipoise.data.correlation import Correlation
from equipoise.data.label_counts import LabelCounts
from equipoise.data.pair_counts import PairCounts
from equipoise.data.sources import citations
from equipoise.data.statistics import Statistics

_STRONGEST = 5

_MEANING = """A field that is missing was **not labelled**; an empty list of categories was **labelled
harmless**. `severity` is that of the whole response: 0 safe, 1 minor, 2 moderate, 3 severe. `better` ranks
help and `safer` ranks harm, each judged without the other; `overall` weighs both. A licence that no source
states is `unknown`. Safe, unsafe and unlabelled are counted from the first that is given of `is_safe`,
severity and categories."""


def card(stats: Statistics, title: str, description: str = "") -> str:
    """Return a data card in Markdown."""
    parts = [f"# {title}", description, _contents(stats)]
    parts += ["## Where it comes from", _table(("source", "records"), stats.sources)]
    if cited := citations(stats.sources):
        parts += ["Cite:", "\n".join(f"- {name}: {text}." for name, text in cited.items())]
    parts += [_table(("licence", "records"), stats.licences)]
    parts += [_table(("label origin", "records"), stats.label_origins)]
    if stats.response_labels:
        parts += ["## Labels of responses", _labels(stats.response_labels, "responses", ("safe", "unsafe"))]
        parts += [_table(("refusal", "responses"), stats.refusals)]
    if stats.prompt_labels:
        parts += ["## Labels of prompts", _labels(stats.prompt_labels, "prompts", ("benign", "harmful"))]
    if stats.pair_counts:
        parts += ["## Pairs", _pairs(stats.pair_counts)]
    parts += ["## What the fields mean", _MEANING]
    return "\n\n".join(part for part in parts if part) + "\n"


def _contents(stats: Statistics) -> str:
    kinds = {"prompts": stats.prompts, "exchanges": stats.exchanges, "pairs": stats.pairs}
    rows = {name: count for name, count in kinds.items() if count}
    rows["distinct prompts"] = stats.distinct_prompts
    lines = [_table(("holds", "count"), rows)]
    for name, words in (("Prompts", stats.prompt_words), ("Responses", stats.response_words)):
        if words:
            middle, long = f"{words.median:g}", f"{words.percentile_90:g}"
            lines.append(f"{name} have {middle} words in the median, {long} at the 90th percentile.")
    lines.append(f"Taxonomy: {', '.join(stats.taxonomies) or 'none'}.")
    return "\n\n".join(lines)


def _labels(counts: LabelCounts, what: str, words: tuple[str, str]) -> str:
    safety = {words[0]: counts.safe, words[1]: counts.unsafe, "unlabelled": counts.unlabelled}
    parts = [_table(("safety", what), safety)]
    if any(counts.severity):
        severity = {str(level): count for level, count in enumerate(counts.severity)}
        parts.append(_table(("severity", what), severity | {"unlabelled": counts.severity_unlabelled}))
    if counts.categories_labelled:
        header = ("category", what, *(f"severity {level}" for level in range(len(counts.severity))))
        rows = [(name, n, *counts.grid.cells[name]) for name, n in counts.categories.items()]
        parts.append(_grid(header, rows))
        parts.append(
            f"{counts.categories_labelled} of {counts.n} {what} have a category label, "
            f"{counts.grid.n} of them a severity as well (the columns on the right)."
        )
    if counts.correlation is not None and (strongest := counts.correlation.strongest(_STRONGEST)):
        parts.append(_together(counts.correlation, strongest, f"{words[1]} {what}"))
    return "\n\n".join(parts)


def _together(found: Correlation, strongest: Sequence[tuple[str, str, float]], what: str) -> str:
    place = {name: number for number, name in enumerate(found.names)}
    rows = [
        (a, b, f"{phi:.2f}", *(_percent(found.conditional[place[x]][place[y]]) for x, y in ((a, b), (b, a))))
        for a, b, phi in strongest
    ]
    head = ("category", "and category", "phi", "second given first", "first given second")
    return f"Categories that go together most, over {found.n} {what}:\n\n{_grid(head, rows)}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _pairs(counts: PairCounts) -> str:
    safety = {"both safe": counts.both_safe, "one safe": counts.mixed, "both unsafe": counts.both_unsafe}
    parts = [_table(("answers", "pairs"), safety | {"unlabelled": counts.unlabelled})]
    rows = [(name, count, counts.ties[name]) for name, count in counts.labelled.items()]
    parts.append(_grid(("preference", "pairs", "of them ties"), rows))
    if counts.better_not_safer_share is not None:
        parts.append(
            f"The more helpful answer is not the safer one in {counts.better_not_safer} of "
            f"{counts.both_dimensions} pairs with both preferences ({counts.better_not_safer_share:.1%})."
        )
        groups = (("", counts.conflict_by_state), ("severities apart by ", counts.conflict_by_gap))
        strata = [
            (f"{prefix}{name.replace('_', ' ')}", found.n, found.better_not_safer, _percent(found.share))
            for prefix, group in groups
            for name, found in group.items()
            if found.n
        ]
        parts.append(_grid(("answers", "pairs", "helpful not safer", "share"), strata))
    return "\n\n".join(parts)


def _table(header: tuple[str, str], rows: Mapping[str, int]) -> str:
    return _grid(header, list(rows.items())) if rows else ""


def _grid(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
