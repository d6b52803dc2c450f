"""The labelled texts that a guard is calibrated on, and whether it has seen their prompts before."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from equipoise.data.io import read_exchanges, read_records, record_kind
from equipoise.data.splits import normalise_prompt
from equipoise.errors import DataError
from equipoise.lineage import content_hash, hash_file, read_manifest
from equipoise.moderation.fitting import Truth
from equipoise.records import Exchange, Pair, Prompt, text_of
from equipoise.training.guard_rows import GuardRows

CALIBRATED = "guard.calibrate"
"""Name of the step that calibrates."""

_TRAINED_ON: dict[str, type[Exchange] | type[Pair] | type[Prompt]] = {
    "exchanges": Exchange,
    "pairs": Pair,
    "prompts": Prompt,
}
"""Settings of `train guard` that name files whose prompts it has seen."""


class Records(NamedTuple):
    """What the data files hold."""

    exchanges: list[Exchange]
    prompts: list[Prompt]


def read_labelled(paths: Sequence[Path]) -> Records:
    """Read files of any kind of labelled record; both answers of a pair are exchanges."""
    kinds = {path: record_kind(path) for path in paths}
    exchanges, pairs, prompts = (
        [path for path, kind in kinds.items() if kind is wanted] for wanted in (Exchange, Pair, Prompt)
    )
    return Records(
        read_exchanges(exchanges, pairs), [r for path in prompts for r in read_records(path, Prompt)]
    )


def truth_of(rows: GuardRows) -> Truth:
    """Return what the majority of labels says of each row of a guard's training."""
    targets = rows.targets
    above = torch.where(targets.passed == targets.failed, -1, (targets.passed > targets.failed).long())
    there = torch.where(targets.category_weight > 0, (targets.categories >= 0.5).long(), -1)
    there[above[:, 0] == 0] = 0
    number: dict[str, int] = {}
    prompts = [normalise_prompt(text.prompt) for text in rows.texts]
    return Truth(
        is_prompt=np.array([text.response is None for text in rows.texts], dtype=bool),
        above=above.numpy(),
        categories=there.numpy(),
        refusal=torch.where(targets.refusal.sum(-1) > 0, targets.refusal.argmax(-1), -1).numpy(),
        prompt=np.array([number.setdefault(prompt, len(number)) for prompt in prompts], dtype=np.intp),
    )


def refuse_training_prompts(guard: Path, records: Sequence[Exchange | Prompt]) -> list[str]:
    """Refuse texts to prompts that the guard was trained on; return which of its files are not at hand."""
    manifest = guard / "manifest.json"
    if not manifest.is_file():
        return ["all of them"]
    done = read_manifest(manifest)
    if done.step == CALIBRATED:  # calibrated before: what its weights were trained on stands one step back
        return refuse_training_prompts(Path(done.inputs["guard"].path), records)
    seen: set[str] = set()
    unchecked: list[str] = []
    began = done.inputs.get("start")  # a guard that it went on from, which was trained too
    if began is not None and Path(began.path).is_dir() and content_hash(Path(began.path)) == began.sha256:
        unchecked += refuse_training_prompts(Path(began.path), records)
    elif began is not None:
        unchecked.append(f"those of {Path(began.path).name}")
    for name, source in done.inputs.items():
        kind, path = _TRAINED_ON.get(name.partition(".")[0]), Path(source.path)
        if kind is not None and path.is_file() and hash_file(path) == source.sha256:
            seen |= {_prompt(record) for record in read_records(path, kind)}
        elif kind is not None:
            unchecked.append(path.name)
    shared = [record.id for record in records if _prompt(record) in seen]
    if shared:
        raise DataError(
            f"data: {len(shared)} records have a prompt that the guard was trained on, first {shared[0]};"
            " split by prompt with `equipoise data split`"
        )
    return unchecked


def _prompt(record: Exchange | Pair | Prompt) -> str:
    return normalise_prompt(text_of(record.prompt))
