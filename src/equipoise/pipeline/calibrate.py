"""Calibrate a guard and fit its policies: `equipoise calibrate --guard DIR --data FILE --out DIR`.

The new folder is a guard like the old one, with `calibration.json` and `policies/`. It is fitted to all of
the labelled texts; what its card says is measured by cross-fitting: each text by a fit to the other folds,
which share no prompt with it.
"""

import os
import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, JsonValue

from equipoise.config import Config, InputPath, to_yaml
from equipoise.errors import DataError
from equipoise.evaluation.calibration import (
    CalibrationResult,
    Decisions,
    Predictions,
    decisions,
    measure_calibration,
    predictions,
)
from equipoise.evaluation.calibration_card import HEADING, calibration_text
from equipoise.evaluation.files import write_json
from equipoise.evaluation.reliability import BINS
from equipoise.lineage import Run, Step, hash_file, write_text
from equipoise.models.checkpoints import save_card
from equipoise.models.guard import GuardCard
from equipoise.models.heads import GuardLogits
from equipoise.moderation.calibration import FILE, WEIGHTS, Calibration, save_calibration
from equipoise.moderation.default import GuardPath
from equipoise.moderation.fitting import Truth, fit_calibration
from equipoise.moderation.guard import load_guard
from equipoise.moderation.policies import FOLDER, Policy, Probability
from equipoise.moderation.presets import Presets, fit_presets
from equipoise.moderation.reading import Reading
from equipoise.pipeline.calibration_rows import (
    CALIBRATED,
    Records,
    read_labelled,
    refuse_training_prompts,
    truth_of,
)
from equipoise.progress import track
from equipoise.records import Exchange, Prompt
from equipoise.stats import Indices
from equipoise.training.guard_rows import guard_rows

_MEASURED = "calibration_measured.json"
_OF_A_RUN = {"manifest.json", "config.yaml", "card.md", "log.jsonl"}
_WRITTEN_ANEW = {*_OF_A_RUN, "model.json", FILE, FOLDER, _MEASURED}


class CalibrateConfig(Config):
    """Settings of `calibrate`."""

    guard: GuardPath
    data: tuple[InputPath, ...] = Field(min_length=1)
    """Files of labelled exchanges, pairs or prompts that the guard was not trained on."""
    presets: Presets = Presets()
    """What strict, moderate and loose are fitted to."""
    review: tuple[Probability, Probability] | None = None
    """Band of P(unsafe) that the presets send to a person."""
    certify: bool = False
    """Thresholds keep to their aim with 95 % confidence, and not just on these rows."""
    category_threshold: Probability = 0.5
    """On calibrated P(category | unsafe): what an unsafe text is said to be."""
    refusal_threshold: Probability = 0.5
    """On calibrated P(partial or full refusal)."""
    least: Annotated[int, Field(ge=2)] = 25
    """Rows of either kind that a head or a threshold of its own needs."""
    folds: Annotated[int, Field(ge=2)] = 5
    draws: Annotated[int, Field(ge=100)] = 2000
    """Resamplings behind every interval."""
    seed: int = 0


def calibrate(config: CalibrateConfig, run: Run) -> None:
    """Write a guard with its calibration, its policies and what they do."""
    records = read_labelled(config.data)
    every: list[Exchange | Prompt] = [*records.exchanges, *records.prompts]
    run.licences |= {record.licence for record in every}
    unchecked = refuse_training_prompts(config.guard, every)
    reading, truth = _read(config, records)
    calibration, policies = _fit(config, reading, truth)
    calibration = calibration.model_copy(update={"weights": hash_file(config.guard / WEIGHTS)})
    before = predictions(_part(reading, None))
    measured = measure_calibration(
        before, *cross_fit(config, reading, truth), truth, draws=config.draws, seed=config.seed
    )
    _copy(config.guard, run.out)
    save_card(run.out, _with_thresholds(reading.card, calibration, config))
    save_calibration(run.out, calibration)
    for name, policy in policies.items():
        write_text(run.out / FOLDER / f"{name}.yaml", to_yaml(policy.model_dump(exclude_defaults=True)))
    write_json(run.out / _MEASURED, measured)
    run.notes |= _notes(truth, calibration, measured, unchecked)
    told = calibration_text(measured, policies, _about(config, reading.card, truth, calibration, unchecked))
    write_text(run.card, _card_of(config.guard) + told)


def _read(config: CalibrateConfig, records: Records) -> tuple[Reading, Truth]:
    """Read the texts of the kinds that the guard judges; its own calibration, if any, plays no part."""
    guard = load_guard(config.guard)
    rows = guard_rows(records.exchanges, guard.card.taxonomy, records.prompts)
    kinds = ["prompt" if text.response is None else "response" for text in rows.texts]
    kept = np.flatnonzero([kind in guard.card.targets for kind in kinds])
    if not kept.size:
        raise DataError(f"data: no labelled {' or '.join(guard.card.targets)}, which this guard judges")
    truth = truth_of(rows).pick(kept)
    if not guard.card.knows_refusals:
        truth = truth._replace(refusal=np.full_like(truth.refusal, -1))
    return guard.read([rows.texts[i] for i in kept]), truth


def _fit(config: CalibrateConfig, reading: Reading, truth: Truth) -> tuple[Calibration, dict[str, Policy]]:
    calibration = fit_calibration(
        reading.logits,
        truth,
        reading.card.taxonomy.names,
        weights="",
        least=config.least,
    )
    policies = fit_presets(
        _part(reading, calibration),
        truth,
        config.presets,
        certify=config.certify,
        least=config.least,
        review=config.review,
    )
    return calibration, policies


def _part(reading: Reading, calibration: Calibration | None, rows: Indices | None = None) -> Reading:
    """Return some rows of a reading, or all, with another calibration."""
    rows = np.arange(len(reading.cut)) if rows is None else rows
    index = torch.as_tensor(rows)
    return Reading(
        reading.card,
        GuardLogits(*(part[index] for part in reading.logits)),
        [reading.cut[i] for i in rows],
        targets=[reading.targets[i] for i in rows],
        calibration=calibration,
    )


def cross_fit(
    config: CalibrateConfig, reading: Reading, truth: Truth
) -> tuple[Predictions, dict[str, Decisions]]:
    """Predict and decide for each text by a fit to the other folds; folds are made of whole prompts."""
    prompts = int(truth.prompt.max()) + 1
    fold = (np.random.default_rng(config.seed).permutation(prompts) % config.folds)[truth.prompt]
    order: list[Indices] = []
    predicted: list[Predictions] = []
    decided: dict[str, list[Decisions]] = {}
    for number in track(range(config.folds), "cross-fitting"):
        rows, others = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        try:
            calibration, policies = _fit(config, _part(reading, None, others), truth.pick(others))
        except DataError as exc:
            share = f"{config.folds}/{config.folds - 1}"
            raise DataError(
                f"cross-fitting, without fold {number + 1} of {config.folds}: {exc}; all folds together need"
                f" about {share} of that"
            ) from exc
        held = _part(reading, calibration, rows)
        order.append(rows)
        predicted.append(predictions(held))
        for name, policy in policies.items():
            decided.setdefault(name, []).append(decisions(held, policy))
    back = np.argsort(np.concatenate(order))
    said = {
        name: Decisions(*(np.concatenate(part)[back] for part in zip(*parts, strict=True)))
        for name, parts in decided.items()
    }
    return Predictions(*(np.concatenate(part)[back] for part in zip(*predicted, strict=True))), said


def _copy(guard: Path, out: Path) -> None:
    """Put the guard's weights, tokenizer and whatever else it needs into `out`, linked where that goes."""
    for source in sorted(path for path in guard.rglob("*") if path.is_file()):
        place = source.relative_to(guard)
        if place.parts[0] in _WRITTEN_ANEW:
            continue
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # of an attempt that was cut off
        try:
            os.link(source, target)
        except OSError:  # another disk
            shutil.copyfile(source, target)


def _with_thresholds(card: GuardCard, calibration: Calibration, config: CalibrateConfig) -> GuardCard:
    """Return the card with thresholds on what the calibrated heads say; others stay."""
    new: dict[str, float] = {}
    if calibration.categories:
        new["category_threshold"] = config.category_threshold
    if calibration.refusal_temperature is not None:
        new["refusal_threshold"] = config.refusal_threshold
    return card.model_copy(update=new)


def _notes(
    truth: Truth, calibration: Calibration, measured: CalibrationResult, unchecked: list[str]
) -> dict[str, JsonValue]:
    return {
        "texts": len(truth.prompt),
        "prompts": len(np.unique(truth.prompt)),
        "training_files_not_checked": list(unchecked),
        "calibrated": list(calibration.unsafe),
        "ece": {name: round(head.after.corrected, 4) for name, head in measured.heads.items()},
        "ece_upper": {name: round(head.after.upper, 4) for name, head in measured.heads.items()},
    }


def _about(
    config: CalibrateConfig, card: GuardCard, truth: Truth, calibration: Calibration, unchecked: list[str]
) -> list[str]:
    """Say what the fit rests on."""
    alone = int(truth.is_prompt.sum())
    files = ", ".join(path.name for path in config.data)
    lines = [
        f"fitted to {len(truth.prompt)} labelled texts ({alone} prompts by themselves,"
        f" {len(truth.prompt) - alone} responses) to {len(np.unique(truth.prompt))} prompts: {files}",
        f"not compared with the guard's training files that are not at hand: {', '.join(unchecked)}"
        if unchecked
        else "none is to a prompt that the guard was trained on",
        f"measured by cross-fitting: each text by a fit to the other {config.folds - 1} of {config.folds}"
        " folds, which share no prompt with it",
        f"ECE: mean absolute gap over {BINS} bins of equal mass; corrected for the noise of the bins as in"
        " Kumar et al. 2019; the squared gap is corrected exactly (Ferro and Fricker 2012), so that its"
        " interval covers 0 where nothing is wrong",
        f"intervals: 95 %, {config.draws} resamplings of whole prompts",
        "aims of the policies are kept to with 95 % confidence (Wilson's bound, counted in prompts)"
        if config.certify
        else "aims of the policies are kept to on these rows; certify=true asks for 95 % confidence",
    ]
    unsafe = truth.unsafe == 1
    graded = unsafe & (truth.at_least >= 0).all(axis=1)
    if 0 < graded.sum() < unsafe.sum():
        lines.append(
            f"{graded.sum()} of {unsafe.sum()} unsafe texts have a severity; F1 by severity counts these, and"
            " all of the safe texts"
        )
    if calibration.shared:
        few = ", ".join(calibration.shared)
        lines.append(f"categories with too few rows, which share one line: {few}")
    left = [f"{target}s" for target in card.targets if target not in calibration.unsafe]
    left += ["categories"] if not calibration.categories else []
    left += ["refusal"] if card.knows_refusals and calibration.refusal_temperature is None else []
    left += [f"severity {k}" for k in range(2, truth.above.shape[1] + 1) if k not in calibration.severity]
    if left:
        lines.append(f"not calibrated, for want of labelled rows: {', '.join(left)}")
    return lines


def _card_of(guard: Path) -> str:
    """Return the guard's card without what an earlier calibration said."""
    card = guard / "card.md"
    text = card.read_text("utf-8") if card.is_file() else "# Guard\n"
    return text.partition(HEADING)[0].rstrip() + "\n\n"


CALIBRATE = Step(CALIBRATED, 2, calibrate, config=CalibrateConfig)
