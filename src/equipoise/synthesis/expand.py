"""Prompts from a taxonomy: a model writes them, a judge says what they are, and the empty cells come next.

The way of PKU-SafeRLHF (guideline and examples per category, three severities, context expansion) with
the bootstrapping of Self-Instruct, made to work with a model that follows few instructions: what it
writes is begun by a frame, much of it is thrown away, and the judge assigns the category. The severity
is the one that was asked for. Each round looks at what is still missing.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from equipoise.data.corpus import corpus
from equipoise.progress import say
from equipoise.protocols import Messages, Sampling, Verdict
from equipoise.records import Prompt, text_of
from equipoise.synthesis.cells import Cell, cells_in, cells_of, load_examples
from equipoise.synthesis.guide import Start, ask, ask_context, fill, guideline, load_frames
from equipoise.synthesis.overlap import Pool
from equipoise.synthesis.rounds import Round, rounds
from equipoise.synthesis.settings import ExpandSettings, Tools
from equipoise.synthesis.sieve import Candidate, Sieve
from equipoise.synthesis.texts import first_sentence
from equipoise.taxonomy import load_taxonomy

_CONTEXTS = ("I work at", "I live near", "Last week I", "My friend says that", "I am tired and", "My family")


class Call(NamedTuple):
    """One request to the model."""

    id: str
    messages: Messages
    cell: Cell
    start: Start
    of: Prompt | None = None
    """The prompt that gets a sentence of context."""


class Expansion:
    """The state of an expansion: what there is, and what is asked next."""

    def __init__(self, settings: ExpandSettings, tools: Tools) -> None:
        """Load taxonomy, frames and examples."""
        self.settings, self.tools = settings, tools
        self.taxonomy = load_taxonomy(settings.taxonomy)
        self.frames = load_frames(self.taxonomy, settings.frames)
        self.examples = load_examples(self.taxonomy, settings.examples)
        # nothing of the evaluation suite may come back as a prompt to train on
        suite = [text_of(prompt.prompt) for prompt in cast(list[Prompt], corpus("prompts"))]
        self.sieve = Sieve(tools, Pool([*self.examples.texts(), *suite]))
        self.made: dict[Cell, list[Prompt]] = {cell: [] for cell in cells_of(self.taxonomy)}
        self.calls = 0

    def run(self, scratch: Path) -> Iterator[Round]:
        """Yield rounds until every cell has its prompts or the budget is used up."""
        for done in rounds(scratch, "asked", self._plan, self._work):
            self.take(done)
            yield done
            full = sum(len(many) >= self.settings.target for many in self.made.values())
            say(f"expanding: {full} of {len(self.made)} cells are full after {self.calls} calls")

    def take(self, done: Round) -> None:
        """Count what a round made."""
        self.calls += done.calls
        for prompt in done.prompts:
            self.made[cells_in(prompt)[0]].append(prompt)
            self.sieve.pool.add(text_of(prompt.prompt))

    @property
    def prompts(self) -> list[Prompt]:
        """All that was made, cell by cell."""
        return [prompt for many in self.made.values() for prompt in many]

    def _plan(self) -> list[Cell] | None:
        """Return the cells to ask for, the emptiest first, each as often as it gets calls."""
        each, left = self.settings.calls_per_cell, self.settings.max_calls - self.calls
        missing = [cell for cell, many in self.made.items() if len(many) < self.settings.target]
        missing.sort(key=lambda cell: len(self.made[cell]))
        return [cell for cell in missing for _ in range(each)][:left] or None

    def _work(self, number: int, todo: object) -> Round:
        calls = [self._call(number, at, cell) for at, cell in enumerate(cast(list[Cell], todo))]
        settings = self.settings
        sampling = Sampling(
            settings.max_new_tokens, settings.temperature, settings.top_p, settings.samples, settings.seed
        )
        answers = self.tools.generate([c.messages for c in calls], sampling, [c.id for c in calls])
        found = [
            self._candidate(call, text) for call, texts in zip(calls, answers, strict=True) for text in texts
        ]
        dropped: Counter[str] = Counter()
        passed = self.sieve(found, dropped)
        return Round(self._choose(passed, dropped), len(calls), len(found), dropped)

    def _call(self, number: int, at: int, cell: Cell) -> Call:
        rng = random.Random(f"{self.settings.seed}/{number}/{at}/{cell.category}/{cell.severity}")
        name = f"{number}-{at}"
        category = self.taxonomy.categories[self.taxonomy.index(cell.category)]
        plain = [p for p in self.made[cell] if "context_of" not in p.provenance]
        if plain and rng.random() < self.settings.context_share:
            of = rng.choice(plain)
            start = Start(rng.choice(_CONTEXTS), "context", {})
            return Call(name, ask_context(text_of(of.prompt), start.text), cell, start, of)
        start = fill(rng.choice(self.frames.asks(category, cell.severity)), self.frames, rng)
        own = [text_of(p.prompt) for p in self.made[cell]]
        bootstrapped = rng.sample(own, min(len(own), self.settings.shots // 2))
        wanted = self.settings.shots - len(bootstrapped)
        near = self.examples.near(cell)[: 2 * wanted]
        shown = [*rng.sample(near, min(len(near), wanted)), *bootstrapped]
        instruction = guideline(self.taxonomy, category, cell.severity)
        return Call(name, ask(instruction, shown, start.text), cell, start)

    def _candidate(self, call: Call, answer: str) -> Candidate:
        text = first_sentence(call.start.text, answer)
        category = self.taxonomy.categories[self.taxonomy.index(call.cell.category)]
        asked: dict[str, Any] = {"category": call.cell.category, "severity": call.cell.severity}
        origin: dict[str, Any] = {"asked": asked, "frame": call.start.frame, "slots": dict(call.start.slots)}
        if call.of is not None:
            text = text and f"{text.rstrip('?.!')}. {text_of(call.of.prompt)}"
            origin["context_of"] = call.of.id
        besides = "" if call.of is None else text_of(call.of.prompt)
        return Candidate(text, call.cell, origin, self.frames.of(category).without, besides)

    def _choose(self, passed: Sequence[Candidate], dropped: Counter[str]) -> list[Prompt]:
        """Keep the best of each cell, no more than are missing, none too like another."""
        chosen: list[Prompt] = []
        have = {cell: len(many) for cell, many in self.made.items()}
        pool = Pool()
        for candidate in sorted(passed, key=lambda c: -c.quality):
            assert candidate.text is not None
            cell = candidate.cell
            if have[cell] >= self.settings.target:
                dropped["not_needed"] += 1
            elif pool.is_near(candidate.text):
                dropped["near_another"] += 1
            else:
                pool.add(candidate.text)
                have[cell] += 1
                chosen.append(self._record(candidate, have[cell]))
        return chosen

    def _record(self, candidate: Candidate, number: int) -> Prompt:
        cell, verdict = candidate.cell, candidate.verdict
        category = self.taxonomy.categories[self.taxonomy.index(cell.category)]
        assert candidate.text is not None
        return Prompt(
            id=f"{self.taxonomy.name}-{category.id}-{cell.severity}-{number:02d}",
            prompt=candidate.text,
            is_harmful=True,
            categories=frozenset(verdict.categories if verdict else (cell.category,)),
            severity=cell.severity,
            taxonomy=self.taxonomy.name,
            source=f"model:{self.tools.model}",
            licence=self.settings.licence,
            label_origin=self.origin("categories", "severity as asked for"),
            annotators=(self.tools.judge_name,) if verdict else (),
            provenance={**candidate.origin, **judged(verdict, cell.category)},
        )

    def origin(self, what: str, more: str = "") -> str:
        """Return the `label_origin` of labels that the judge gave, or that nobody checked."""
        by = f"model:{self.tools.judge_name}" if self.tools.judge else "as asked for"
        return f"{by} ({what}{'; ' + more if more and self.tools.judge else ''})"


def judged(verdict: Verdict | None, category: str | None = None) -> dict[str, Any]:
    """Return what a judge said of a prompt, for its provenance."""
    if verdict is None:
        return {}
    found: dict[str, Any] = {"unsafe": round(verdict.unsafe_probability, 4)}
    if category is not None:
        probabilities = verdict.category_probabilities
        found["category"] = round(probabilities[category], 4)
        found["likeliest"] = max(probabilities, key=probabilities.__getitem__)
    return {"judged": found}
