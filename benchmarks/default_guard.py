"""Train, calibrate, measure and ship the guard that comes with the package.

    python benchmarks/default_guard.py --data DIR             trains, measures and writes the package's guard
    python benchmarks/default_guard.py --data DIR --measure   measures the guard that the package has

It learns from the sources of `default_guard_rows.py`, the built-in exchanges, pairs, look-alikes, requests
and questions, and harms seen with care; of a pair where people only said which answer is the safer one,
three votes of five call the other unsafe, and two of five that one. Rows are split by prompt: `train`,
`calibration` for probabilities and policies, `held` for what may be looked at while settings are chosen. No
row, and no prompt, of the files that are reported in the end is in any of them: PKU-SafeRLHF, OKTest, LLM-
Safeguard. Runs that are done are not done again.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, save
from default_guard_card import model_card
from default_guard_measures import (
    beside_tfidf,
    counts,
    held_out,
    over_refusal,
    pku_answers,
    plain,
    prompts_of,
)
from default_guard_rows import SOURCES, Kept, builtin_rows, harmless_prompts, lines, rows_of, turns

from equipoise.data.io import write_records
from equipoise.data.splits import normalise_prompt
from equipoise.lineage import produce
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.moderation.default import NAME, guard_folder
from equipoise.moderation.guard import load_guard
from equipoise.moderation.presets import Aim, Preset, Presets
from equipoise.pipeline.calibrate import CALIBRATE, CalibrateConfig
from equipoise.records import Exchange, Judgement, Labels, Prompt, text_of
from equipoise.training.guard import TRAIN_GUARD, GuardConfig

PARTS = {"train": 0.7, "calibration": 0.85, "held": 1.0}
"""Upper ends of the parts, of the hash of a prompt."""
VOTES = 5
SHIPPED = ("model.json", "weights.safetensors", "calibration.json", "policies")
SETTINGS: dict[str, Any] = {"balance": 0.5, "rank_weight": 1.0, "max_windows": 16}
"""The rank weight was compared with 0 and 4 by leaving sources out, with linear heads; balance was not."""
PRESETS = Presets(
    strict=Preset(unsafe=Aim(false_positive_rate=0.05)),
    moderate=Preset(unsafe=Aim(false_positive_rate=0.005)),
    loose=Preset(unsafe=Aim(false_positive_rate=0.003)),
)
"""Lower than the toolkit's own: on harmless text unlike that of the calibration it errs far more often."""
REVIEW = (0.5, 0.97)
"""What a person should look at, since so few false alarms are had at the price of many misses."""


def learnable(folder: Path) -> list[Kept]:
    """All rows that may be learned from, but for those to a prompt that is reported."""
    reported = {
        normalise_prompt(row["prompt"])
        for path in (*folder.glob("pku_saferlhf_*.jsonl"), folder / "oktest.jsonl")
        for row in lines(path)
    }
    reported |= set(prompts_of(folder / "llm_safeguard.jsonl").prompts)
    ours = harmless_prompts(ROOT / "benchmarks" / "data")
    rows: list[Kept] = [*builtin_rows(), *ours, *(r for name in SOURCES for r in rows_of(name, folder))]
    return [row for row in rows if reported.isdisjoint(turns(text_of(row.prompt)))]


def part_of(row: Kept) -> str:
    """Part of a row, the same for all rows to its prompt, and for all of its group."""
    about = str(row.provenance.get("group", text_of(row.prompt)))
    digest = hashlib.sha256(normalise_prompt(about).encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    return next(name for name, end in PARTS.items() if place < end)


def write_part(rows: Iterable[Kept], place: Path) -> dict[str, tuple[Path, ...]]:
    """Write rows as files; return them as settings of `train guard`."""
    exchanges = [row for row in rows if isinstance(row, Exchange)]
    prompts = [row for row in rows if isinstance(row, Prompt)]
    files = {name: place / f"{name}.jsonl" for name in ("exchanges", "prompts", "judgements")}
    write_records(files["exchanges"], exchanges)
    write_records(files["prompts"], prompts)
    write_records(files["judgements"], [vote for row in exchanges for vote in votes(row)])
    return {name: (path,) for name, path in files.items()}


def votes(row: Exchange) -> list[Judgement]:
    """What a preference says of one answer, as votes; nothing of a row with a label of its own."""
    if "preferred" not in row.provenance:
        return []
    for_safe = 3 if row.provenance["preferred"] else 2
    said = {"source": row.source, "licence": row.licence, "subject": row.id, "annotator": "preference"}
    return [Judgement(id=f"{row.id}#{i}", labels=Labels(is_safe=i < for_safe), **said) for i in range(VOTES)]


def trained(rows: Sequence[Kept], place: Path, overrides: dict[str, Any]) -> Path:
    """Train and calibrate; return the folder of the calibrated guard, whose weights have 16 bits."""
    files = {name: write_part([row for row in rows if part_of(row) == name], place / name) for name in PARTS}
    settings = GuardConfig.model_validate({**SETTINGS, **overrides, **files["train"]})
    produce(place / "guard", TRAIN_GUARD, settings)
    half = place / "half"
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(place / "guard", half)
    tensors = load_tensors(half / "weights.safetensors")
    save_tensors(half / "weights.safetensors", {name: tensor.half() for name, tensor in tensors.items()})
    data = files["calibration"]["exchanges"] + files["calibration"]["prompts"]
    calibration = CalibrateConfig(guard=half, data=data, presets=PRESETS, review=REVIEW)
    produce(place / "calibrated", CALIBRATE, calibration)
    return place / "calibrated"


def ship(guard: Path) -> Path:
    """Put a calibrated guard into the package."""
    target = guard_folder(NAME)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in SHIPPED:
        place = guard / name
        if place.is_dir():
            shutil.copytree(place, target / name)
        else:
            shutil.copyfile(place, target / name)
    return target


def seconds_to_an_answer() -> float:
    """Wall seconds of `equipoise moderate "..."` in a fresh process."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "equipoise", "moderate", "How do I sharpen a kitchen knife?"]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the sources' rows")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "default_guard", help="where runs lie")
    parser.add_argument("--tune", default="frozen", help="frozen, top, lora")
    parser.add_argument("--measure", action="store_true", help="measure the package's guard; train nothing")
    args = parser.parse_args()
    rows = learnable(args.data)
    settings = {"tune": args.tune, **SETTINGS}
    if args.measure:  # of the guard that is there
        settings = json.loads((RESULTS / "default_guard.json").read_text("utf-8"))["settings"]
    else:
        ship(trained(rows, args.runs, {"tune": args.tune}))
    guard = load_guard(NAME)
    parts = {name: [row for row in rows if part_of(row) == name] for name in PARTS}
    result = {
        "settings": settings,
        "rows": {name: len(part) for name, part in parts.items()},
        "sources": counts(rows),
        "bytes": sum(path.stat().st_size for path in guard_folder(NAME).rglob("*") if path.is_file()),
        "held_out": plain(held_out(guard, parts["held"])),
        "over_refusal": plain(over_refusal(guard, args.data)),
        "pku": plain(beside_tfidf(guard, parts["train"], pku_answers(args.data))),
        "seconds_to_an_answer": round(seconds_to_an_answer(), 1),
    }
    save("default_guard", result)
    shipped = guard_folder(NAME) / "card.md"
    calibrated = shipped if args.measure else args.runs / "calibrated" / "card.md"
    card = model_card(result, calibrated.read_text("utf-8"))
    shipped.write_text(card, "utf-8")
    print(card)


if __name__ == "__main__":
    main()
