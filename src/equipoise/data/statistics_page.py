"""The statistics of a data set as one HTML page that loads nothing and shows no text of a record."""

from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from equipoise import __version__
from equipoise.data.correlation import Correlation
from equipoise.data.label_counts import LabelCounts
from equipoise.data.pair_counts import Conflict, PairCounts
from equipoise.data.plots import Bar, Strip, bars, matrix, strips
from equipoise.data.statistics import Lengths, Statistics

_LEVELS = ("minor", "moderate", "severe")
_STRONGEST = 10


class Table(NamedTuple):
    """A table; all but the first column are numbers."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Part(NamedTuple):
    """One section of the page: what is said, drawn and listed."""

    title: str
    lead: str
    plot: Markup | None = None
    key: tuple[tuple[str, str], ...] = ()
    """Class of a colour, and what it stands for."""
    table: Table | None = None


def page(stats: Statistics, title: str) -> str:
    """Return the page."""
    parts = [_contents(stats)]
    for labels, what, harmful in (
        (stats.response_labels, "responses", "unsafe"),
        (stats.prompt_labels, "prompts", "harmful"),
    ):
        if labels is not None and labels.categories_labelled:
            parts += _of_labels(labels, what, harmful)
    if stats.pair_counts is not None and stats.pair_counts.both_dimensions:
        parts.append(_of_pairs(stats.pair_counts))
    parts += [_lengths(stats), _sources(stats)]
    environment = Environment(
        loader=FunctionLoader(lambda name: (resources.files(__package__) / name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("statistics.html")
    return template.render(title=title, parts=parts, version=__version__)


def _contents(stats: Statistics) -> Part:
    counts = {"prompts": stats.prompts, "exchanges": stats.exchanges, "pairs": stats.pairs}
    rows = [(name, f"{count:,}") for name, count in counts.items() if count]
    rows += [("distinct prompts", f"{stats.distinct_prompts:,}")]
    rows += [(f"licence {name}", f"{count:,}") for name, count in stats.licences.items()]
    rows += [(f"labelled by {name}", f"{count:,}") for name, count in stats.label_origins.items()]
    return Part("What it holds", "", table=Table(("", "records"), rows))


def _of_labels(labels: LabelCounts, what: str, harmful: str) -> list[Part]:
    shown = sorted((name for name, n in labels.categories.items() if n), key=lambda n: -labels.categories[n])
    frequency = [
        Bar(name, [labels.category_share[name] or 0], f"{labels.category_share[name]:.1%}, {n:,}")
        for name in shown
        for n in [labels.categories[name]]
    ]
    lead = f"Share of the {labels.categories_labelled:,} {what} with a category label that are flagged."
    parts = [Part(f"Categories of {what}", lead, bars(frequency, ["plain"]))]
    graded = [(name, profile) for name in shown if (profile := labels.severity_profile[name]) is not None]
    if graded:
        rows = [
            Bar(name, profile[1:], f"{profile[3]:.0%} severe")
            for name, profile in sorted(graded, key=lambda item: -item[1][3])
        ]
        classes = [f"level{n}" for n in (1, 2, 3)]
        key = tuple(zip(classes, _LEVELS, strict=True))
        lead = f"Severity of the {what} that are flagged with a category, the most severe category first."
        parts.append(Part(f"Severity in each category of {what}", lead, bars(rows, classes), key))
    if labels.correlation is not None:
        parts += _of_correlation(labels.correlation, f"{harmful} {what}")
    return parts


def _of_correlation(found: Correlation, what: str) -> list[Part]:
    places = [found.names.index(name) for name in found.order]
    phi, given = ([[m[a][b] for b in places] for a in places] for m in (found.phi, found.conditional))
    index = {name: place for place, name in enumerate(found.names)}
    rows = [
        (f"{a} and {b}", f"{value:.3f}", *(_share(found.conditional[x][y]) for x, y in ((i, j), (j, i))))
        for a, b, value in found.strongest(_STRONGEST)
        for i, j in [(index[a], index[b])]
    ]
    head = ("strongest", "phi", "second given first", "first given second")
    alone = sorted(found.solo.items(), key=lambda item: -(item[1] or 0))
    order = "Rows and columns are ordered by clustering, alike ones side by side; in hundredths."
    return [
        Part(
            f"Categories that go together in {what}",
            f"Phi (Pearson's correlation of the 0/1 labels) over {found.n:,} {what}. {order}",
            matrix(found.order, phi, "{row} and {column}: phi {value:.3f}"),
            (("plus", "more often together than by chance"), ("minus", "less often")),
            Table(head, rows),
        ),
        Part(
            f"One category given another in {what}",
            f"Share of the {what} with the category of the row that have that of the column too. {order}",
            matrix(found.order, given, "{column} given {row}: {value:.1%}"),
        ),
        Part(
            f"Categories that stand alone in {what}",
            "Share of a category's responses that have no other category.",
            bars([Bar(name, [share or 0], _share(share)) for name, share in alone], ["plain"]),
        ),
    ]


def _of_pairs(pairs: PairCounts) -> Part:
    groups = (("", pairs.conflict_by_state), ("severities apart by ", pairs.conflict_by_gap))
    rows = [_conflict(prefix + name, found) for prefix, group in groups for name, found in group.items()]
    lead = (
        "Share of the pairs with both preferences, ties aside, in which the more helpful answer is not the "
        "safer one: by the safety of the two answers and by how far their severities lie apart. The scale "
        "ends at 100%; intervals are Wilson's at 95% and take pairs as independent."
    )
    return Part("Help against harm", lead, strips([row for row in rows if row is not None], 1.0))


def _conflict(name: str, found: Conflict) -> Strip | None:
    if found.share is None or found.low is None or found.high is None:
        return None
    note = f"{found.share:.1%} of {found.n:,}"
    return Strip(name.replace("_", " "), found.share, (found.low, found.high), None, note)


def _lengths(stats: Statistics) -> Part:
    safety = stats.response_words_by_safety
    rows = {"prompts": stats.prompt_words} | {f"{name} responses": words for name, words in safety.items()}
    found = {name: words for name, words in rows.items() if words is not None}
    high = max((words.percentile_90 for words in found.values()), default=1) or 1
    lead = f"Words: median, middle half, and 10th to 90th percentile. The scale ends at {high:g} words."
    return Part("Lengths", lead, strips([_strip(name, words) for name, words in found.items()], high))


def _strip(name: str, words: Lengths) -> Strip:
    inner, outer = (words.percentile_25, words.percentile_75), (words.percentile_10, words.percentile_90)
    return Strip(name, words.median, inner, outer, f"{words.median:g} of {words.n:,}")


def _sources(stats: Statistics) -> Part:
    head = ("source", "records", "responses", "unsafe", "words of a prompt", "words of a response")
    rows = [
        (
            name,
            f"{found.records:,}",
            f"{found.responses:,}",
            _share(found.unsafe_share),
            f"{found.prompt_words.median:g}" if found.prompt_words else "",
            f"{found.response_words.median:g}" if found.response_words else "",
        )
        for name, found in stats.by_source.items()
    ]
    return Part("Sources", "Words are medians.", table=Table(head, rows))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
