"""Rounds of work whose results are kept on disk, so that a run goes on after the last finished one."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from equipoise.lineage import write_text
from equipoise.records import Prompt


class Round(NamedTuple):
    """What one round made."""

    prompts: list[Prompt]
    calls: int
    """Times that the model was asked."""
    texts: int
    """Texts that came back."""
    dropped: Counter[str]
    """Reason -> how many texts were left out for it."""


def rounds(
    scratch: Path, name: str, plan: Callable[[], object | None], work: Callable[[int, object], Round]
) -> Iterator[Round]:
    """Yield the finished rounds from disk, then new ones until there is no plan.

    Args:
        scratch: Folder of the finished rounds.
        name: First part of their file names.
        plan: Says what to do next, from what was yielded so far; None ends it.
        work: Does round number n.
    """
    number = 0
    while (todo := plan()) is not None:
        place = scratch / f"{name}-{number:04d}.json"
        if not place.exists():
            write_text(place, _dump(work(number, todo)))
        yield _load(place.read_text("utf-8"))
        number += 1


def _dump(done: Round) -> str:
    values = done._asdict()
    values["prompts"] = [prompt.model_dump(mode="json", exclude_none=True) for prompt in done.prompts]
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def _load(text: str) -> Round:
    values = json.loads(text)
    prompts = [Prompt.model_validate_json(json.dumps(row)) for row in values["prompts"]]
    return Round(prompts, values["calls"], values["texts"], Counter(values["dropped"]))
