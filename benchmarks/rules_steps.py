"""The runs behind `rules.py`: rows labelled by proposition, their features, grades of held-back rows.

Shapes: N rows, P propositions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold

from equipoise.config import Config, InputPath, ModelRef
from equipoise.data.io import read_records, write_records
from equipoise.data.rows import read_rows
from equipoise.data.splits import normalise_prompt
from equipoise.lineage import Manifest, Run, Step, identify, produce
from equipoise.models.backbone import load_encoder
from equipoise.models.checkpoints import load_tensors, save_tensors
from equipoise.records import Exchange, Record, text_of
from equipoise.rewards.answer_features import AnswerFeatures, Features, Inputs, fit_reader
from equipoise.rewards.grading import answer_groups, fit_heads
from equipoise.rewards.rules import load_rule_set
from equipoise.rewards.summed_odds import Columns, Parts
from equipoise.stats import Floats

FEATURES_FILE, GRADES_FILE = "features.safetensors", "grades.npz"
LAYERS = 6


def gold(path: Path) -> list[Exchange]:
    """Read the labelled rows."""
    return [
        Exchange(
            id=row.values["id"],
            prompt=row.values["prompt"],
            response=row.values["response"],
            source="rbr-gold",
            licence="MIT",
            label_origin="human",
            provenance={
                "propositions": row.values["propositions"],
                "response_type": row.values["ideal_response_type"],
                "split": row.values["split"],
            },
        )
        for row in read_rows(path)
    ]


def prompt_of(record: Any) -> str:
    """A record's prompt as prompts are compared."""
    return normalise_prompt(text_of(record.prompt))


def done(folder: Path, step: Step, config: Config) -> tuple[Path, Manifest]:
    """Run a step into a place of its own, named by what decides its result; what is done stays."""
    identity = identify(step, config)
    place = folder / f"{step.name}-{identity.key[:12]}{'.jsonl' if step.writes_file else ''}"
    return place, produce(place, step, config, identity=identity).manifest


def written(place: Path, records: Sequence[Record]) -> Path:
    """Write records; a run is known by what its inputs hold."""
    place.parent.mkdir(parents=True, exist_ok=True)
    write_records(place, records)
    return place


def encoder_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `train rules` that say what is read through."""
    return {name: settings[name] for name in ("backbone", "layers") if name in settings}


class FeaturesConfig(Config):
    """Settings of the features."""

    exchanges: InputPath
    backbone: ModelRef = "minilm"
    layers: int = LAYERS


def compute_features(config: FeaturesConfig, run: Run) -> None:
    """Write the features of every row, in order."""
    rows = list(read_records(config.exchanges, Exchange))
    run.licences |= {row.licence for row in rows}
    found = Features(load_encoder(config.backbone), config.layers)(rows)
    save_tensors(run.out / FEATURES_FILE, found._asdict())


def read_features(folder: Path) -> AnswerFeatures:
    """Read what `compute_features` wrote."""
    return AnswerFeatures(**load_tensors(folder / FEATURES_FILE))


class GradeConfig(Config):
    """Settings of the grades of held-back rows."""

    exchanges: InputPath
    features: InputPath
    """Folder of `compute_features`."""
    fold: int | None = None
    """Which of `folds` by prompt is held back; the rows' own `test` part where None."""
    folds: int = 5


def grade_held_back(config: GradeConfig, run: Run) -> None:
    """Write places and grades of the held-back rows; NaN where a proposition has no head.

    They are those of heads, of heads on TF-IDF of answers, and of heads on TF-IDF of answers and sentences.
    """
    rows, rules = list(read_records(config.exchanges, Exchange)), load_rule_set("style")
    run.licences |= {row.licence for row in rows}
    labels, groups = np.array([rules.labels(row) for row in rows]), answer_groups(rows)
    if config.fold is None:
        held = np.array([row.provenance["split"] == "test" for row in rows])
        train, test = np.flatnonzero(~held), np.flatnonzero(held)
    else:
        train, test = list(GroupKFold(config.folds).split(labels, groups=groups))[config.fold]
    answers = [row.response for row in rows]
    features = read_features(config.features)
    reader = fit_reader(features.some(train), [answers[i] for i in train])
    everything = reader(features, answers)

    def grades(inputs: Inputs) -> Floats:
        heads, _ = fit_heads(inputs.some(train), labels[train], [groups[i] for i in train])
        return np.where(heads.trained, heads(inputs.some(test)), np.nan)

    words, parts = everything.answers.words, everything.sentences
    silent = Parts(Columns(words.dense, 0 * words.sparse), np.arange(len(rows)))
    np.savez(
        run.out / GRADES_FILE,
        test=test,
        ours=grades(everything),
        theirs=grades(Inputs(words, silent)),
        words=grades(Inputs(words, parts._replace(rows=parts.rows.words))),
    )


FEATURES = Step("benchmark.rules.features", 5, compute_features, config=FeaturesConfig)
GRADE = Step("benchmark.rules.grade", 8, grade_held_back, config=GradeConfig)
