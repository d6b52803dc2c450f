"""Category x severity: which cells a set of prompts fills, and which examples belong to them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from equipoise.data.corpus import corpus_path
from equipoise.data.steps import read_files
from equipoise.records import Exchange, Prompt, text_of
from equipoise.taxonomy import Taxonomy


class Cell(NamedTuple):
    """A category and a severity above safe."""

    category: str
    severity: int


class Coverage(NamedTuple):
    """How many harmful prompts are in each cell of a taxonomy."""

    taxonomy: Taxonomy
    counts: Mapping[Cell, int]

    def filled(self, target: int) -> int:
        """Return how many cells hold at least `target` prompts."""
        return sum(self.counts.get(cell, 0) >= target for cell in cells_of(self.taxonomy))

    def markdown(self, target: int) -> str:
        """Return the table of counts, and under it how many cells reach the target."""
        levels = [f"{n} {level.name}" for n, level in enumerate(self.taxonomy.severities)][1:]
        lines = [["category", *levels], ["---", *["---:"] * len(levels)]]
        for name in self.taxonomy.names:
            lines.append([name, *(str(self.counts.get(Cell(name, n + 1), 0)) for n in range(len(levels)))])
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        total = len(cells_of(self.taxonomy))
        return f"{table}\n\n{self.filled(target)} of {total} cells hold at least {target} prompts.\n"

    def to_json(self) -> dict[str, JsonValue]:
        """Return category -> how many prompts of severity 1, 2, ..."""
        top = len(self.taxonomy.severities)
        return {
            name: [self.counts.get(Cell(name, level), 0) for level in range(1, top)]
            for name in self.taxonomy.names
        }


def cells_of(taxonomy: Taxonomy) -> list[Cell]:
    """Return all cells of a taxonomy, in head order.

    >>> from equipoise.taxonomy import load_taxonomy
    >>> len(cells_of(load_taxonomy("pku19")))
    57
    """
    return [Cell(name, n) for name in taxonomy.names for n in range(1, len(taxonomy.severities))]


def cells_in(prompt: Prompt) -> list[Cell]:
    """Return the cells that a prompt fills: the one it was made for, if its labels agree, else none.

    A prompt that was not made for a cell fills one for each of its categories.
    """
    if not prompt.is_harmful or not prompt.categories or not prompt.severity:
        return []
    asked = prompt.provenance.get("asked")
    if isinstance(asked, dict):
        name = str(asked.get("category"))
        return [Cell(name, prompt.severity)] if name in prompt.categories else []
    return [Cell(name, prompt.severity) for name in sorted(prompt.categories)]


def coverage(prompts: Iterable[Prompt], taxonomy: Taxonomy) -> Coverage:
    """Count the prompts of each cell."""
    return Coverage(taxonomy, Counter(cell for prompt in prompts for cell in cells_in(prompt)))


class Examples(NamedTuple):
    """Prompts that show the model what is meant."""

    by_category: Mapping[str, list[tuple[int, str]]]
    """Category -> severity (0 where none is given) and text."""

    def near(self, cell: Cell) -> list[str]:
        """Return the examples of a category, those of the severity first."""
        found = self.by_category.get(cell.category, [])
        return [text for _, text in sorted(found, key=lambda item: abs(item[0] - cell.severity))]

    def texts(self) -> list[str]:
        """Return all texts."""
        return [text for many in self.by_category.values() for _, text in many]


def load_examples(taxonomy: Taxonomy, path: Path | None) -> Examples:
    """Read harmful prompts by category from a file of records; from the built-in corpus where None.

    The corpus knows the categories of `pku19` only, so another taxonomy has no examples without a file.
    """
    if path is None and taxonomy.name != "pku19":
        return Examples({})
    found: dict[str, list[tuple[int, str]]] = {}
    for _, _, record in read_files([path or corpus_path("exchanges")]):
        if isinstance(record, Prompt | Exchange) and record.categories:
            text = text_of(record.prompt)
            for name in sorted(record.categories):
                taxonomy.index(name)
                found.setdefault(name, []).append((record.severity or 0, text))
    return Examples({name: sorted(set(items)) for name, items in found.items()})
