"""How well trained graders tell propositions, and whether rules order answers; from `results/rules.json`."""

import json
from pathlib import Path
from typing import Any

from cells import number, table

FILE = Path(__file__).parents[1] / "benchmarks" / "results" / "rules.json"
ENCODERS = ("mpnet", "minilm")


def graders() -> str:
    """F1 of each proposition on held-back answers, by what is read; then whether pairs are in order."""
    if not FILE.is_file():
        return "Not measured yet."
    found = json.loads(FILE.read_text("utf-8"))
    split, folds = found["split"], found["cross_validated"]
    best = split[ENCODERS[0]]
    rows = [
        [
            f"`{name}`",
            str(told["positives"]),
            *(_f1(split, encoder, name, "grader") for encoder in ENCODERS),
            _f1(split, ENCODERS[0], name, "without_model"),
            _f1(split, ENCODERS[0], name, "tfidf"),
            _f1(folds, ENCODERS[0], name, "grader"),
            _f1(folds, ENCODERS[0], name, "tfidf"),
        ]
        for name, told in sorted(best.items(), key=lambda each: -each[1]["positives"])
    ]
    head = [
        "proposition",
        "true of",
        *(f"on {encoder}" for encoder in ENCODERS),
        "words of answers and sentences",
        "words of answers",
        "on mpnet, all 517",
        "words of answers, all 517",
    ]
    return "\n\n".join([table(head, rows), table(ORDER, list(_order(found)))])


ORDER = ["held-back pairs in order", "answers to other prompts", "in other wordings too"]


def _f1(part: dict[str, Any], encoder: str, name: str, which: str) -> str:
    told = part.get(encoder, {}).get(name)
    return "" if told is None or which not in told else f"{told[which]:.2f}"


def _order(found: dict[str, Any]) -> list[list[str]]:
    ways = [found[part] for part in ("order", "wordings")]
    rows = []
    for way, what in (("beside no reward", "rules"), ("beside a scorer", "rules on top of a reward")):
        rows.append([what, *(number(part[way]["all"]["total"]) for part in ways)])
    alone = "beside a scorer"
    return [*rows, ["the reward alone", *(number(part[alone]["all"]["reward_alone"]) for part in ways)]]
