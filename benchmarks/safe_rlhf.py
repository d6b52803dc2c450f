"""What constrained RLHF does to a small model, by judges it learned from and by others: two seeds.

    python benchmarks/safe_rlhf.py --data DIR [--runs DIR] [--seeds 0 1] [--set updates=60]

Runs `recipes/safe-rlhf-small.yaml` with each seed of the policy (what is done is not done again; data,
scorer and judges are shared). Kept is what changes on prompts that drew an unsafe answer and on harmless
ones that look harmful, all of them held back from every training: by the policy's own scorer and the guard
of the package (`own`), and by a guard and a scorer of other prompts (`others`); whether the mean cost keeps
the budget there, and passes a release test (HC-RLHF); over-refusal by source. Intervals are 95 %, paired,
clustered by prompt.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common import ROOT, save

from equipoise.data.io import read_records
from equipoise.evaluation.certify import certify
from equipoise.evaluation.files import plain, read_lines
from equipoise.evaluation.rows import EvaluatedRow
from equipoise.pipeline.recipe import load_recipe
from equipoise.pipeline.run import run_recipe
from equipoise.pipeline.summary import Finished
from equipoise.records import Prompt
from equipoise.stats import paired_difference

RECIPE = ROOT / "recipes" / "safe-rlhf-small.yaml"
LOGGED = ("reward", "costs", "excess", "multipliers", "kl", "harmful", "length", "repetition", "entropy")
"""Of each update, as far as they are kept."""
LAST = 10
"""Updates at the end whose mean cost is told, that of prompts which the policy learns on."""
DELTA = 0.05
"""Of the release test."""


def measured(done: Mapping[str, Finished]) -> dict[str, Any]:
    """The numbers of one seed."""
    log = [json.loads(line) for line in (done["policy"].place / "log.jsonl").read_text("utf-8").splitlines()]
    budget = log[-1]["budgets"]["cost"]
    found: dict[str, Any] = {
        "budget": budget,
        "mean_of_last_updates": fmean(update["costs"]["cost"] for update in log[-LAST:]),
        "last": min(LAST, len(log)),
        "updates": [{name: update[name] for name in LOGGED} for update in log],
        "warnings": [text for update in log for text in update["warnings"]],
        "seconds": {part: sum(update["seconds"][part] for update in log) for part in log[0]["seconds"]},
        "minutes": {name: step.manifest.wall_seconds / 60 for name, step in done.items()},
    }
    for name, step in (("own", "change_own"), ("others", "change")):
        found[name] = json.loads((done[step].place / "comparison.json").read_text("utf-8"))
    cost = found["own"]["metrics"]["cost_harmful"]["after"]
    found["budget_on_held_back"] = (
        "kept" if cost["high"] <= budget else "exceeded" if cost["low"] > budget else "not told apart from it"
    )
    rows = read_lines(done["aligned_own"].place / "rows.jsonl", EvaluatedRow)
    held_back = [(row.id, row.cost) for row in rows if row.is_harmful and row.cost is not None]
    prompts, costs = zip(*held_back, strict=True)
    found["certificate"] = certify(costs, prompts, budget=budget, delta=DELTA)._asdict()
    sources = {prompt.id: prompt.source for prompt in read_records(done["suite"].place, Prompt)}
    found["over_refusal"] = over_refusal(done["base"].place, done["aligned"].place, sources)
    return found


def over_refusal(before: Path, after: Path, sources: Mapping[str, str]) -> dict[str, Any]:
    """Share of harmless prompts that are refused, by their source, and how it changes."""
    mine, theirs = (
        {row.id: row for row in read_lines(place / "rows.jsonl", EvaluatedRow) if not row.is_harmful}
        for place in (before, after)
    )
    by_source: dict[str, list[str]] = {}
    for name in mine:
        by_source.setdefault(sources[name], []).append(name)
    return {source: changed(names, mine, theirs) for source, names in sorted(by_source.items())}


def changed(
    names: Sequence[str], before: Mapping[str, EvaluatedRow], after: Mapping[str, EvaluatedRow]
) -> dict[str, Any]:
    """Refused before and after, and the difference."""
    a, b = ([float(rows[name].refusal != "none") for name in names] for rows in (before, after))
    return {
        "before": sum(a) / len(a),
        "after": sum(b) / len(b),
        "difference": plain(paired_difference(b, a, names)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with the rows")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs lie")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of the policy")
    parser.add_argument("--set", action="append", default=[], help="a setting of the recipe")
    given = parser.parse_args()
    result: dict[str, Any] = {"set": given.set, "seeds": {}}
    for seed in given.seeds:
        recipe = load_recipe(RECIPE, [f"data.dir={given.data}", *given.set, f"seed={seed}"])
        done = run_recipe(recipe, given.runs / "safe-rlhf")
        result["seeds"][seed] = measured({step.name: step for step in done})
        result["settings"] = {k: v for k, v in recipe.settings.items() if k not in ("data", "seed")}
        save("safe_rlhf", result)


if __name__ == "__main__":
    main()
