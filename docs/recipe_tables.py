"""What each recipe measured, for the README."""

import json
from pathlib import Path
from typing import Any

from cells import number, table

HERE = Path(__file__).parent
SHOWN = {
    "harmful_rate",
    "over_refusal",
    "truly_safe",
    "under_safe",
    "over_safe",
    "reward",
    "repetition",
    "words",
}


def results() -> str:
    """The measured numbers: what is in `benchmarks/results/`, and nothing else."""
    folder = HERE.parent / "benchmarks" / "results"
    parts = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        if "recipe" in found:
            parts.append(recipe_results(found))
    return "\n\n".join(parts) or "None yet."


def recipe_results(found: dict[str, Any]) -> str:
    """The tables of one recipe: detection beside its baseline, then base against aligned."""
    from equipoise.evaluation.metrics import METRICS

    minutes = sum(step["wall_seconds"] for step in found["steps"].values()) / 60
    where = f"{found['machine']['cores']} cores, {found['machine']['processor']}, seed {found['seed']}"
    settings = "".join(f" --set {item}" for item in found.get("set", ()))
    parts = [f"**`recipes/{found['recipe']}.yaml{settings}`**, {minutes:.0f} minutes on {where}."]
    if "detection" in found:
        parts.append(detection_table(found["detection"]))
    if "coverage" in found:
        parts.append(release_table(found))
    if "report" in found:
        metrics = found["report"]["comparisons"][0]["metrics"]
        rows = [
            [metric.title, *(number(metrics[key][k]) for k in ("before", "after", "difference"))]
            for key, metric in METRICS.items()
            if key in SHOWN and key in metrics
        ]
        parts.append(table(["responses to unseen prompts", "base", "aligned", "difference"], rows))
    return "\n\n".join(parts)


def release_table(found: dict[str, Any]) -> str:
    """What a made data set holds: cells, rows, near-copies, rows that people touched."""
    cells = [count for row in found["coverage"].values() for count in row]
    full = f"{sum(count >= 3 for count in cells)} of {len(cells)}"
    rows = [["cells (category and severity) with 3 prompts or more", full]]
    for name, counts in found["release"].items():
        rows.append([f"{name}", f"{counts['rows']}"])
        rows.append([f"near-copies among the {name}", f"{counts['near_copies']}"])
        rows.append([f"{name} that a person wrote or labelled", f"{counts['human_rows']}"])
    return table(["made from the taxonomy", "found"], rows)


def detection_table(found: dict[str, Any]) -> str:
    """Guard and scorer on held-out rows, beside TF-IDF with logistic regression."""
    guard, order = found["guard"], found["ordering"]
    lines = [
        ["unsafe responses, AUROC", guard["auroc"], guard["baseline_auroc"], guard["auroc_gain"]],
        ["safer answer of a pair, accuracy", order["accuracy"], order["baseline_accuracy"], order["gain"]],
    ]
    rows = [[name, *map(number, values), str(values[0]["n"])] for name, *values in lines]
    return table(["on held-out rows", "equipoise", "TF-IDF", "difference", "n"], rows)
