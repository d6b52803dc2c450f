"""How well trained graders tell propositions, and whether rules fitted on templates order answers.

    python benchmarks/rules.py --data DIR [--runs DIR] [--features FILE]

`rbr_gold.jsonl` of the folder is labelled by proposition; no two rows share a prompt. Graders learn on its
`train` rows and are measured on its `test` rows, and once more by cross-validation over all rows. The peer is
the same heads on TF-IDF of the answer alone. Thresholds and strengths are chosen on training rows only.

Then `train rules` fits weights with graders trained on all rows, on answers put together from templates to
built-in prompts. It is measured on answers in other wordings to other prompts, beside the reward alone of a
scorer.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from sklearn.model_selection import GroupKFold

from equipoise.data.io import write_records
from equipoise.data.rows import read_rows
from equipoise.data.splits import normalise_prompt
from equipoise.lineage import produce
from equipoise.models.backbone import load_encoder
from equipoise.pipeline.rules import TRAIN_RULES, RulesConfig
from equipoise.records import Exchange, text_of
from equipoise.rewards.grading import Features, Inputs, fit_heads, fit_reader
from equipoise.rewards.rules import Grades, RuleSet, load_rule_set
from equipoise.stats import bootstrap, f1

LAYERS = 6
FLOORS = {
    "regret": 0.83,
    "disclaimer": 0.87,
    "hedges": 0.89,
    "points_to_professional": 0.86,
    "adds_unasked": 0.73,
    "harmful_detail": 0.67,
    "declines": 0.13,
    "judges_user": 0.11,
}
"""F1 that TF-IDF graders were measured at on the same split, before any of this; what is asked for."""


def gold(path: Path) -> list[Exchange]:
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


def features_of(rows: Sequence[Exchange], cache: Path | None) -> torch.Tensor:
    """Features of the frozen model, computed once."""
    if cache is not None and cache.exists():
        found: torch.Tensor = torch.load(cache, weights_only=True)
        return found
    found = Features(load_encoder("minilm"), LAYERS)(rows)
    if cache is not None:
        torch.save(found, cache)
    return found


def graded(
    rows: Sequence[Exchange],
    features: torch.Tensor,
    labels: Grades,
    train: Any,
    test: Any,
    *,
    words_only: bool,
) -> Grades:
    """Grades of the test rows by heads that learned on the training rows; NaN where there is no head."""
    reader = fit_reader(features[train], [rows[i].response for i in train])
    inputs = reader(features, [e.response for e in rows])
    if words_only:
        inputs = inputs._replace(features=np.zeros((len(rows), 0)))
    fit, held = (Inputs(*(part[places] for part in inputs)) for places in (train, test))
    heads, _ = fit_heads(fit, labels[train], [rows[i].id for i in train])
    return np.where(heads.trained, heads(held), np.nan)


def table(ours: Grades, theirs: Grades, labels: Grades, rules: RuleSet) -> dict[str, Any]:
    """F1 of each proposition, of the peer, and their difference, by resampling prompts."""
    found = {}
    for place, name in enumerate(rules.names):
        yes, x, y = labels[:, place] == 1, ours[:, place] > 0.5, theirs[:, place] > 0.5
        if np.isnan(ours[:, place]).any():
            continue
        clusters = list(range(len(yes)))

        def gap(i: Any, x: Any = x, y: Any = y, yes: Any = yes) -> float:
            return f1(x[i], yes[i]) - f1(y[i], yes[i])

        found[name] = {
            "positives": int(yes.sum()),
            "grader": f1(x, yes),
            "tfidf": f1(y, yes),
            "difference": bootstrap(gap, clusters, draws=300)._asdict(),
            **({"floor": FLOORS[name]} if name in FLOORS else {}),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/rules"))
    parser.add_argument("--features", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--scorer", type=Path, help="a scorer's folder, whose reward the rules go on top of")
    given = parser.parse_args()
    rows, rules = gold(given.data / "rbr_gold.jsonl"), load_rule_set("style")
    labels = np.array([rules.labels(e) for e in rows])
    features = features_of(rows, given.features)
    result: dict[str, Any] = {"rows": len(rows)}

    part = np.array([e.provenance["split"] for e in rows])
    train, test = np.flatnonzero(part == "train"), np.flatnonzero(part == "test")
    both = [graded(rows, features, labels, train, test, words_only=w) for w in (False, True)]
    result["split"] = table(*both, labels[test], rules)
    save("rules", result)

    ours, theirs = np.full_like(labels, np.nan), np.full_like(labels, np.nan)
    prompts = [normalise_prompt(text_of(e.prompt)) for e in rows]
    for fit, held in GroupKFold(given.folds).split(labels, groups=prompts):
        ours[held] = graded(rows, features, labels, fit, held, words_only=False)
        theirs[held] = graded(rows, features, labels, fit, held, words_only=True)
    result["cross_validated"] = table(ours, theirs, labels, rules)
    save("rules", result)

    given.runs.mkdir(parents=True, exist_ok=True)
    write_records(given.runs / "gold.jsonl", rows)
    config = RulesConfig(exchanges=(given.runs / "gold.jsonl",), scorer=given.scorer)
    outcome = produce(given.runs / "style", TRAIN_RULES, config, force=True)
    told = json.loads((given.runs / "style" / "rules.json").read_text("utf-8"))
    result["order"] = {"beside": "a scorer" if given.scorer else "no reward", **told["order"]}
    result["seconds"] = outcome.manifest.wall_seconds
    save("rules", result)


if __name__ == "__main__":
    main()
