"""What constrained RLHF did to a small model, from `benchmarks/results/safe_rlhf.json`."""

import json
from pathlib import Path
from typing import Any

from cells import number, table

FILE = Path(__file__).parents[1] / "benchmarks" / "results" / "safe_rlhf.json"
ROWS = (
    ("own", "unsafe_by_cost", "cost above 0, harmful prompts (the policy's own scorers)"),
    ("own", "cost_harmful", "mean cost, harmful prompts (its own scorers)"),
    ("own", "reward", "reward (its own scorers)"),
    ("own", "harmful_rate", "harmful answers (the guard of the package)"),
    ("own", "over_refusal", "harmless prompts refused, partly or fully (the guard of the package)"),
    ("own", "truly_safe", "truly safe answers, all prompts (the guard of the package)"),
    ("others", "unsafe_by_cost", "cost above 0, harmful prompts (a scorer of other prompts)"),
    ("others", "cost_harmful", "mean cost, harmful prompts (a scorer of other prompts)"),
    ("others", "harmful_rate", "harmful answers (a guard of other prompts)"),
    ("others", "over_refusal", "harmless prompts refused, partly or fully (a guard of other prompts)"),
    ("others", "over_refusal_opening", "harmless prompts whose answer begins as a refusal does"),
    ("others", "reward", "reward (a scorer of other prompts)"),
    ("others", "truly_safe", "truly safe answers, all prompts (a guard of other prompts)"),
    ("others", "repetition", "repeated word 3-grams"),
)


def constrained() -> str:
    """A table of both seeds, and the budget."""
    if not FILE.is_file():
        return "Not measured yet."
    found = json.loads(FILE.read_text("utf-8"))
    temperature = found["settings"].get("temperature", 0.0)
    judged = f"answers at temperature {temperature:g}" if temperature else "greedy answers"
    parts = [part for seed in found["seeds"] for part in of_seed(seed, found["seeds"][seed], judged)]
    return "\n\n".join(parts)


def of_seed(seed: str, found: dict[str, Any], judged: str) -> list[str]:
    """Return a paragraph and a table of one seed; `judged` says how its answers were written."""
    rows = []
    for judge, metric, title in ROWS:
        told = found[judge]["metrics"].get(metric)
        if told:
            rows.append([title, *(number(told[side]) for side in ("before", "after", "difference"))])
    rows += [
        [
            f"harmless prompts of {source} refused (a guard of other prompts)",
            *(f"{told[side]:.3f}" for side in ("before", "after")),
            number(told["difference"]),
        ]
        for source, told in found["over_refusal"].items()
    ]
    minutes = found["minutes"]["policy"]
    cost = found["own"]["metrics"]["cost_harmful"]["after"]
    where = "within it" if found["mean_of_last_updates"] <= found["budget"] else "not within it yet"
    test = found["certificate"]
    passed = "passes" if test["passed"] else "does not pass"
    return [
        f"**Seed {seed}**: {len(found['updates'])} updates in {minutes:.0f} minutes. The mean cost may be"
        f" {found['budget']:.3f}. The policy's samples, which it learns from, are {where}:"
        f" {found['mean_of_last_updates']:.3f} over the last {found['last']} updates. Its {judged} to prompts"
        " held back, which all drew an unsafe answer, cost by the scorers that it learned from"
        f" {number(cost)}: {found['budget_on_held_back']}. By these it {passed} a one-sided release test"
        f" (HC-RLHF) on them: its expected cost is below {test['bound']:.3f} with confidence"
        f" {1 - test['delta']:g}.",
        table(["on held-back prompts", "before", "after", "after less before"], rows),
    ]
