"""Which responses a report shows: those where the runs differ most, then typical ones."""

from collections.abc import Sequence
from typing import NamedTuple

from equipoise.evaluation.metrics import STATES, State, state_of
from equipoise.evaluation.rows import EvaluatedRow, EvaluationRun
from equipoise.records import text_of

STATE_NAMES: dict[State, str] = {
    "under_safe": "under-safe",
    "truly_safe": "truly safe",
    "over_safe": "over-safe",
}


class Shown(NamedTuple):
    """One response of one run."""

    run: str
    state: State
    row: EvaluatedRow


class Example(NamedTuple):
    """One prompt with the response of every run."""

    id: str
    sample: int
    is_harmful: bool
    prompt: str
    categories: list[str]
    change: str
    """For example `under-safe → truly safe`."""
    shown: list[Shown]


def choose(runs: Sequence[EvaluationRun], limit: float, count: int) -> list[Example]:
    """Return up to `count` examples, taking each kind of change in turn.

    Kinds are (harmful or benign prompt, state in the first run, state in the last); changes come
    before what stayed as it was. Rows that not every run has are left out.
    """
    tables = [{row.key: row for row in run.rows} for run in runs]
    kinds: dict[tuple[bool, bool, int, int], list[Example]] = {}
    for key, first in tables[0].items():
        rows = [table[key] for table in tables if key in table]
        if len(rows) < len(tables):
            continue
        states = [state_of(row, limit) for row in rows]
        changed = states[0] != states[-1]
        names = [STATE_NAMES[states[0]], STATE_NAMES[states[-1]]]
        example = Example(
            id=first.id,
            sample=first.sample,
            is_harmful=first.is_harmful,
            prompt=text_of(first.prompt),
            categories=sorted(first.prompt_categories),
            change=" → ".join(names) if changed else names[0],
            shown=[Shown(run.name, state, row) for run, state, row in zip(runs, states, rows, strict=True)],
        )
        kind = (not changed, not first.is_harmful, STATES.index(states[0]), STATES.index(states[-1]))
        kinds.setdefault(kind, []).append(example)
    queues = [kinds[kind] for kind in sorted(kinds)]
    chosen: list[Example] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen
