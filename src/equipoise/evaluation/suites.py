"""The prompts that a model is evaluated on: the built-in suite, or any file of Prompt records."""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from equipoise.errors import DataError
from equipoise.records import Prompt, text_of

BUILTIN = "builtin"
BUILTIN_HARMFUL = 60
BUILTIN_BENIGN = 40

Select = Literal["chosen", "rest", "all"]
"""The seeded subset, the prompts that it leaves out, or the whole suite."""


def load_suite(
    suite: str,
    *,
    harmful: int | None = None,
    benign: int | None = None,
    seed: int = 0,
    select: Select = "chosen",
) -> list[Prompt]:
    """Return the prompts of a suite, in its order, or a fixed-seed subset spread over categories.

    Args:
        suite: `builtin`, or a file of Prompt records.
        harmful: How many harmful prompts to take; None takes 60 of the built-in suite, all of a file.
        benign: How many benign ones; None takes 40 of the built-in suite, all of a file.
        seed: Decides which ones, where not all are taken.
        select: `chosen` is that subset; `rest` is what it leaves out, to measure again on prompts that
            the subset of the same counts and seed has not used; `all` heeds neither counts nor seed.

    Raises:
        DataError: no such suite, an unlabelled prompt, an id that stands twice, or too few prompts.
    """
    if suite == BUILTIN:
        from equipoise.data.corpus import corpus

        prompts = [record for record in corpus("prompts") if isinstance(record, Prompt)]
        harmful = BUILTIN_HARMFUL if harmful is None else harmful
        benign = BUILTIN_BENIGN if benign is None else benign
    else:
        prompts = _read(suite)
    if select == "all":
        return prompts
    by_id = {prompt.id: prompt for prompt in prompts}
    chosen: set[str] = set()
    for is_harmful, wanted, word in ((True, harmful, "harmful"), (False, benign, "benign")):
        pool = [prompt for prompt in prompts if prompt.is_harmful is is_harmful]
        if wanted is not None and wanted > len(pool):
            raise DataError(f"suite '{suite}': has {len(pool)} {word} prompts, got {word}={wanted}")
        chosen |= {p.id for p in spread(pool, len(pool) if wanted is None else wanted, seed, by_id)}
    kept = [prompt for prompt in prompts if (prompt.id in chosen) is (select == "chosen")]
    if not kept:
        why = ", 'chosen' takes them all" if select == "rest" else ""
        raise DataError(f"suite '{suite}': no prompts to evaluate on (select={select}{why})")
    return kept


def spread(pool: Sequence[Prompt], count: int, seed: int, by_id: Mapping[str, Prompt]) -> list[Prompt]:
    """Take `count` prompts so that categories, then severities, come up equally often.

    A benign prompt stands for the categories and the severity of its harmful twin.
    """
    if count == len(pool):
        return list(pool)
    left = list(pool)
    random.Random(seed).shuffle(left)
    seen: Counter[str] = Counter()
    levels: Counter[int | None] = Counter()
    taken: list[Prompt] = []
    while len(taken) < count:
        best = min(
            range(len(left)),
            key=lambda i: (
                _load(_labelled(left[i], by_id), seen),
                levels[_labelled(left[i], by_id).severity],
                i,
            ),
        )
        prompt = left.pop(best)
        labels = _labelled(prompt, by_id)
        seen.update(labels.categories or ())
        levels[labels.severity] += 1
        taken.append(prompt)
    return taken


def suite_hash(prompts: Sequence[Prompt]) -> str:
    """Sha256 over the ids, texts and harm labels of the prompts: what two runs must share."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.id}\0{text_of(prompt.prompt)}\0{prompt.is_harmful}\n".encode())
    return digest.hexdigest()


def _load(prompt: Prompt, seen: Counter[str]) -> float:
    """How often this prompt's categories were taken already; without categories, no preference."""
    return (
        sum(seen[name] for name in prompt.categories) / len(prompt.categories) if prompt.categories else 0.0
    )


def _labelled(prompt: Prompt, by_id: Mapping[str, Prompt]) -> Prompt:
    twin = by_id.get(prompt.twin) if prompt.twin and not prompt.is_harmful else None
    return twin or prompt


def _read(suite: str) -> list[Prompt]:
    """Read a file of prompts that can all be evaluated; what is wrong with it is named with its line."""
    from equipoise.data.io import read_placed

    if not Path(suite).is_file():
        raise DataError(f"suite: no file '{suite}'; built in: {BUILTIN} (or give a file of prompts)")
    lines: dict[str, int] = {}
    prompts = []
    for path, line, prompt in read_placed(Path(suite), Prompt):
        if prompt.is_harmful is None:
            raise DataError(f"{path}:{line}: is_harmful: missing; expected true or false")
        if not text_of(prompt.prompt).strip():
            raise DataError(f"{path}:{line}: prompt: empty; expected a text to respond to")
        if lines.setdefault(prompt.id, line) != line:
            raise DataError(f"{path}:{line}: id: '{prompt.id}' stands on line {lines[prompt.id]} already")
        prompts.append(prompt)
    if not prompts:
        raise DataError(f"{suite}: holds no prompts; expected one per line, with id, prompt and is_harmful")
    return prompts
