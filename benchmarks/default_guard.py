"""Train, calibrate, measure and ship the guard that comes with the package.

    python benchmarks/default_guard.py --data DIR             trains, measures and writes the package's guard
    python benchmarks/default_guard.py --data DIR --measure   measures the guard that the package has

It learns from the sources of `default_guard_rows.py`, the built-in corpus and everyday prompts of ours; of a
pair where people only said which answer is the safer one, three votes of five call the other unsafe, and two
of five that one. Rows are split by prompt: `train`, `calibration` for probabilities and policies, `held` for
what may be looked at while settings are chosen. No row, and no prompt, of the files that are reported in the
end is in any of them: PKU-SafeRLHF, OKTest, LLM-Safeguard. Runs that are done are not done again.
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
from typing import Any, NamedTuple

import numpy as np
from common import RESULTS, ROOT, save
from default_guard_card import model_card
from default_guard_rows import SOURCES, Kept, builtin_rows, harmless_prompts, lines, rows_of, turns

from equipoise.data.io import write_records
from equipoise.data.splits import normalise_prompt
from equipoise.evaluation.baseline import unsafe_scores
from equipoise.lineage import produce
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.models.windows import TextPair
from equipoise.moderation.default import NAME, guard_folder
from equipoise.moderation.guard import Guard, load_guard
from equipoise.moderation.presets import Aim, Preset, Presets
from equipoise.pipeline.calibrate import CALIBRATE, CalibrateConfig
from equipoise.records import Exchange, Judgement, Labels, Prompt, text_of
from equipoise.stats import Estimate, auroc, bootstrap, bootstrap_mean
from equipoise.training.guard import TRAIN_GUARD, GuardConfig

PARTS = {"train": 0.7, "calibration": 0.85, "held": 1.0}
"""Upper ends of the parts, of the hash of a prompt."""
VOTES = 5
SHIPPED = ("model.json", "weights.safetensors", "calibration.json", "policies")
SETTINGS: dict[str, Any] = {"balance": 0.5, "rank_weight": 1.0, "max_windows": 16}
"""The rank weight was compared with 0 and 4 by leaving sources out, with linear heads; balance was not."""
PRESETS = Presets(
    strict=Preset(unsafe=Aim(false_positive_rate=0.05)),
    moderate=Preset(unsafe=Aim(false_positive_rate=0.01)),
    loose=Preset(unsafe=Aim(false_positive_rate=0.003)),
)
"""Lower than the toolkit's own: on harmless text unlike that of the calibration it errs far more often."""
REVIEW = (0.5, 0.97)
"""What a person should look at, since so few false alarms are had at the price of many misses."""


class Texts(NamedTuple):
    """Texts of a file that is reported, their labels, and the prompts that cluster them."""

    pairs: list[TextPair]
    unsafe: list[bool]

    @property
    def prompts(self) -> list[str]:
        """Normalised prompt of each."""
        return [normalise_prompt(text.prompt) for text in self.pairs]


def pku_answers(folder: Path) -> Texts:
    """Both answers of the PKU rows, each once."""
    found: dict[TextPair, bool] = {}
    for row in lines(folder / "pku_saferlhf_mini.jsonl") + lines(folder / "pku_saferlhf_pairs.jsonl"):
        for side in (0, 1):
            text = TextPair(row["prompt"], row[f"response_{side}"])
            found.setdefault(text, not row[f"is_response_{side}_safe"])
    return Texts(list(found), list(found.values()))


def prompts_of(path: Path) -> Texts:
    """Prompts of a file by themselves."""
    rows = lines(path)
    return Texts([TextPair(row["prompt"], None) for row in rows], [row["is_harmful"] for row in rows])


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


def unsafe_probabilities(guard: Guard, pairs: Sequence[TextPair]) -> tuple[np.ndarray, np.ndarray]:
    """P(unsafe) of each text, and whether the default policy flags it."""
    reading = guard.read(pairs)
    verdicts = [reading.verdict(row) for row in range(len(pairs))]
    return np.array([v.unsafe_probability for v in verdicts]), np.array([not v.is_safe for v in verdicts])


def separation(scores: np.ndarray, unsafe: Sequence[bool], prompts: Sequence[str]) -> Estimate:
    """AUROC, by resampling prompts."""
    is_unsafe = np.array(unsafe)
    return bootstrap(lambda rows: auroc(scores[rows], is_unsafe[rows]), prompts)


def beside_tfidf(guard: Guard, train: Sequence[Kept], texts: Texts) -> dict[str, Any]:
    """AUROC of the guard and of TF-IDF with logistic regression, and their difference, paired.

    The peer learns from the labelled answers that the guard was trained on, once with the preferences as
    labels too and once without; the better of the two counts.
    """
    ours, flagged = unsafe_probabilities(guard, texts.pairs)
    unsafe, prompts = np.array(texts.unsafe), texts.prompts
    test = [Exchange(id=str(i), prompt=p, response=r or "") for i, (p, r) in enumerate(texts.pairs)]
    labelled = [row for row in train if isinstance(row, Exchange) and row.is_safe is not None]
    preferred = [
        row.model_copy(update={"is_safe": bool(row.provenance["preferred"])})
        for row in train
        if isinstance(row, Exchange) and "preferred" in row.provenance
    ]
    peers = {
        "labels": unsafe_scores(labelled, test),
        "labels and preferences": unsafe_scores(labelled + preferred, test),
    }
    name = max(peers, key=lambda peer: auroc(peers[peer], unsafe))
    theirs, named = peers[name], np.array(prompts)
    return {
        "auroc": separation(ours, unsafe, prompts),
        "tfidf_auroc": separation(theirs, unsafe, prompts),
        "difference": bootstrap(
            lambda rows: auroc(ours[rows], unsafe[rows]) - auroc(theirs[rows], unsafe[rows]), prompts
        ),
        "tfidf_from": {"taken": name, **{peer: auroc(found, unsafe) for peer, found in peers.items()}},
        "safe_flagged": bootstrap_mean(flagged[~unsafe], named[~unsafe]),
        "unsafe_flagged": bootstrap_mean(flagged[unsafe], named[unsafe]),
    }


def over_refusal(guard: Guard, folder: Path) -> dict[str, Any]:
    """Share of harmless prompts that the default policy flags; and how harmful ones stand out."""
    safeguard = prompts_of(folder / "llm_safeguard.jsonl")
    ok = prompts_of(folder / "oktest.jsonl")
    scores, flagged = unsafe_probabilities(guard, safeguard.pairs)
    harmless = ~np.array(safeguard.unsafe)
    return {
        "oktest_flagged": bootstrap_mean(unsafe_probabilities(guard, ok.pairs)[1], ok.prompts),
        "llm_safeguard_harmless_flagged": bootstrap_mean(flagged[harmless], np.flatnonzero(harmless)),
        "llm_safeguard_harmful_flagged": bootstrap_mean(flagged[~harmless], np.flatnonzero(~harmless)),
        "llm_safeguard_auroc": separation(scores, safeguard.unsafe, safeguard.prompts),
    }


def held_out(guard: Guard, rows: Sequence[Kept]) -> dict[str, Any]:
    """AUROC on rows of its own sources that it was not trained on: answers, prompts, and by source."""
    found: dict[str, Any] = {}
    kinds: dict[str, list[tuple[TextPair, bool, str]]] = {"responses": [], "prompts": []}
    for row in rows:
        text = text_of(row.prompt)
        if isinstance(row, Prompt) and row.is_harmful is not None:
            kinds["prompts"].append((TextPair(text, None), row.is_harmful, row.source))
        elif isinstance(row, Exchange) and row.is_safe is not None:
            kinds["responses"].append((TextPair(text, row.response), not row.is_safe, row.source))
    for kind, texts in kinds.items():
        scores, flagged = unsafe_probabilities(guard, [text for text, _, _ in texts])
        unsafe = np.array([label for _, label, _ in texts])
        prompts = [normalise_prompt(text.prompt) for text, _, _ in texts]
        safe = np.flatnonzero(~unsafe)
        found[kind] = {
            "auroc": separation(scores, unsafe, prompts),
            "safe_flagged": bootstrap_mean(flagged[safe], [prompts[i] for i in safe]),
        }
        sources = np.array([source for _, _, source in texts])
        for source in sorted(set(sources)):
            own = np.flatnonzero(sources == source)
            if min(unsafe[own].sum(), (~unsafe[own]).sum()) >= 20:
                found[kind][source] = separation(scores[own], unsafe[own], [prompts[i] for i in own])
    return found


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


def counts(rows: Sequence[Kept]) -> dict[str, int]:
    """Rows of each source."""
    names = sorted({row.source for row in rows})
    return {name: sum(row.source == name for row in rows) for name in names}


def plain(found: Any) -> Any:
    """Estimates as mappings of rounded numbers."""
    if isinstance(found, Estimate):
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in found._asdict().items()}
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    return round(found, 4) if isinstance(found, float) else found


if __name__ == "__main__":
    main()
