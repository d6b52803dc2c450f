"""How far annotators agree: per question, per category, among people, among models and between both.

Intervals come from resampling subjects, both answers of a pair together. Between two groups, each
answer of one is paired with each answer of the other to the same item; Cohen's kappa then treats the
groups as two raters.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple, cast

import numpy as np

from equipoise.annotation.coefficients import (
    Integers,
    Statistic,
    cohen,
    counts_of,
    estimates,
    fleiss,
    gwet,
    identity,
    krippendorff,
    linear,
    masi,
    percent,
    plain,
    quadratic,
)
from equipoise.annotation.raters import CATEGORY, Panel, Votes, cluster_of, questions_in, votes
from equipoise.progress import track
from equipoise.stats import Estimate

GROUPS = (("person", "person"), ("person", "model"), ("model", "model"))


class Agreement(NamedTuple):
    """Agreement on one question between some annotators."""

    question: str
    between: str
    """`all`, `person-person`, `person-model`, `model-model`, or `NAME / NAME` for two annotators."""
    raters: int
    items: int
    """Items with two answers or more."""
    coefficients: dict[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN is None."""
        found = {name: plain(estimate) for name, estimate in self.coefficients.items()}
        return {**self._asdict(), "coefficients": found}


def agreement(
    panel: Panel, categories: Sequence[str] = (), *, draws: int = 1000, seed: int = 0
) -> list[Agreement]:
    """Return the agreement on every question that two annotators answered on the same subject.

    Args:
        panel: The judgements.
        categories: Names of single categories to report, besides the sets.
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.
    """
    found: list[Agreement] = []
    for question in track(questions_in(panel, categories), "agreement"):
        table = votes(panel, question)
        for between, codes, items in _groupings(panel, table, question):
            kept = (codes >= 0).sum(axis=1) >= 2
            if not kept.any():
                continue
            clusters = [cluster_of(table.items[i]) for i in items[kept]]
            used, rows = np.unique(codes[kept], return_inverse=True)
            values = list(table.values)
            answers = codes[kept]
            if question == "categories":  # many sets are possible and few are used
                values = [values[code] for code in used if code >= 0]
                answers = rows.reshape(answers.shape) - int(used[0] < 0)
            statistics = coefficients(question, answers, values)
            found.append(
                Agreement(
                    question,
                    between,
                    int((codes >= 0).any(axis=0).sum()),
                    len(set(items[kept])),
                    estimates(statistics, clusters, draws=draws, seed=seed),
                )
            )
    return found


def coefficients(question: str, codes: Integers, values: Sequence[Any]) -> dict[str, Statistic]:
    """Return the coefficients that fit a question, over answers [N, R] that are numbers of `values`."""
    size = len(values)
    counts, names, two = counts_of(codes, size), identity(size), codes.shape[1] == 2
    result = {"percent": percent(counts, names)}
    if question == "categories":
        distances = masi(cast(Sequence[frozenset[str]], values))
        result["masi_similarity"] = percent(counts, 1 - distances)
        result["krippendorff_masi"] = krippendorff(counts, distances)
        return result
    if two:
        result["cohen"] = cohen(codes, names)
    if question == "severity":
        if two:
            result["cohen_linear"] = cohen(codes, linear(size))
            result["cohen_quadratic"] = cohen(codes, quadratic(size))
        result["fleiss_quadratic"] = fleiss(counts, quadratic(size))
        result["krippendorff_ordinal"] = krippendorff(counts)
        result["gwet_ac2_quadratic"] = gwet(counts, quadratic(size))
        return result
    result["fleiss"] = fleiss(counts, names)
    result["krippendorff"] = krippendorff(counts, 1 - names)
    result["gwet_ac1"] = gwet(counts, names)
    return result


def agreement_markdown(found: Sequence[Agreement]) -> str:
    """Return the report as Markdown: a table per question, single annotators at its end."""
    lines = ["# Agreement", ""]
    lines += [
        "Intervals at 95 %, by resampling subjects (both answers of a pair together). `n` is the number of",
        "subjects with two answers or more. Krippendorff's alpha, Fleiss' and Cohen's kappa fall towards 0",
        "where one answer is rare; Gwet's AC does not. No interval: too few or too uniform answers.",
    ]
    for question in dict.fromkeys(row.question for row in found):
        rows = [row for row in found if row.question == question]
        names = list(dict.fromkeys(name for row in rows for name in row.coefficients))
        lines += ["", f"## {question.removeprefix(CATEGORY)}", ""]
        lines += ["| between | raters | n | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
        lines += ["|---|---:|---:|" + "---|" * len(names)]
        for row in rows:
            cells = [_cell(row.coefficients.get(name)) for name in names]
            lines.append(f"| {row.between} | {row.raters} | {row.items} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "-"
    return f"{estimate.value:.3f}" if math.isnan(estimate.low) else str(estimate)


def _groupings(panel: Panel, table: Votes, question: str) -> Iterator[tuple[str, Integers, Integers]]:
    """Yield who is compared, their answers [N, R], and the item that each row is of, [N]."""
    codes, every = table.matrix(), np.arange(len(table.items))
    yield "all", codes, every
    columns = {
        kind: [i for i, name in enumerate(table.raters) if panel.kinds[name] == kind]
        for kind in ("person", "model")
    }
    for first, second in GROUPS:
        if first == second:
            if len(columns[first]) >= 2:
                yield f"{first}-{first}", codes[:, columns[first]], every
        elif columns[first] and columns[second]:
            crossed = [(a, b) for a in columns[first] for b in columns[second]]
            rows = np.concatenate([codes[:, list(pair)] for pair in crossed])
            items = np.tile(every, len(crossed))
            both = (rows >= 0).all(axis=1)
            yield f"{first}-{second}", rows[both], items[both]
    if not question.startswith(CATEGORY) and len(table.raters) > 2:
        for a, b in combinations(range(len(table.raters)), 2):
            yield f"{table.raters[a]} / {table.raters[b]}", codes[:, [a, b]], every
