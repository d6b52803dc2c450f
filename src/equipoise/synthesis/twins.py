"""A harmless look-alike for every harmful prompt: the same people and things, another intent.

A set without them teaches a model to refuse words. The text is begun by a harmless frame of the same
category with the slots filled as in the harmful prompt; of what the judge finds harmless, the one with
the most words in common is kept.
"""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from equipoise.protocols import Sampling
from equipoise.records import Prompt, text_of
from equipoise.synthesis.cells import cells_in
from equipoise.synthesis.expand import Expansion, judged
from equipoise.synthesis.guide import ask_look_alike, fill
from equipoise.synthesis.overlap import Pool, jaccard, words_of
from equipoise.synthesis.rounds import Round, rounds
from equipoise.synthesis.sieve import Candidate
from equipoise.synthesis.texts import first_sentence


def pair_up(expansion: Expansion, scratch: Path) -> Iterator[Round]:
    """Yield rounds of look-alikes until every prompt has one or the rounds are used up."""
    have: set[str | None] = set()
    done_rounds = 0

    def plan() -> list[Prompt] | None:
        alone = [prompt for prompt in expansion.prompts if prompt.id not in have]
        return alone if alone and done_rounds < expansion.settings.twin_rounds else None

    def work(number: int, todo: object) -> Round:
        return _work(expansion, number, cast(list[Prompt], todo))

    for done in rounds(scratch, "twins", plan, work):
        have |= {prompt.twin for prompt in done.prompts}
        for prompt in done.prompts:
            expansion.sieve.pool.add(text_of(prompt.prompt))
        done_rounds += 1
        yield done


def linked(prompts: list[Prompt], twins: list[Prompt]) -> list[Prompt]:
    """Return the harmful prompts, each with the id of its look-alike and followed by it."""
    of = {twin.twin: twin for twin in twins}
    both: list[Prompt] = []
    for prompt in prompts:
        twin = of.get(prompt.id)
        both += [prompt] if twin is None else [prompt.model_copy(update={"twin": twin.id}), twin]
    return both


def _work(expansion: Expansion, number: int, alone: list[Prompt]) -> Round:
    settings, frames, taxonomy = expansion.settings, expansion.frames, expansion.taxonomy
    messages, owners = [], []
    for prompt in alone:
        rng = random.Random(f"{settings.seed}/twin/{number}/{prompt.id}")
        cell = cells_in(prompt)[0]
        benign = frames.of(taxonomy.categories[taxonomy.index(cell.category)]).benign
        slots: Any = prompt.provenance.get("slots") or {}
        start = fill(rng.choice(benign), frames, rng, slots)
        messages.append(ask_look_alike(frames, text_of(prompt.prompt), start.text))
        owners.append((prompt, cell, start))
    sampling = Sampling(
        settings.max_new_tokens, settings.temperature, settings.top_p, settings.samples, settings.seed
    )
    answers = expansion.tools.generate(messages, sampling, [f"twin-{number}-{p.id}" for p in alone])
    found = [
        Candidate(
            first_sentence(start.text, text),
            cell,
            {"look_alike_of": prompt.id, "frame": start.frame},
            is_benign=True,
        )
        for (prompt, cell, start), texts in zip(owners, answers, strict=True)
        for text in texts
    ]
    dropped: Counter[str] = Counter()
    left = expansion.sieve(found, dropped)
    return Round(_choose(expansion, alone, left, dropped), len(alone), len(found), dropped)


def _choose(
    expansion: Expansion, alone: list[Prompt], left: list[Candidate], dropped: Counter[str]
) -> list[Prompt]:
    chosen: list[Prompt] = []
    pool = Pool()
    for prompt in alone:
        words = words_of(text_of(prompt.prompt))
        own = [c for c in left if c.origin["look_alike_of"] == prompt.id and not pool.is_near(str(c.text))]
        if not own:
            continue
        best = max(own, key=lambda c: (jaccard(words, words_of(str(c.text))), c.quality))
        dropped["not_needed"] += len(own) - 1
        pool.add(str(best.text))
        chosen.append(
            Prompt(
                id=f"{prompt.id}-benign",
                prompt=str(best.text),
                is_harmful=False,
                categories=frozenset(),
                severity=0,
                twin=prompt.id,
                taxonomy=prompt.taxonomy,
                source=prompt.source,
                licence=prompt.licence,
                label_origin=expansion.origin("harmless"),
                annotators=prompt.annotators,
                provenance={**best.origin, **judged(best.verdict)},
            )
        )
    return chosen
