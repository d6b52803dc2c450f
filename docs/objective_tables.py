"""All objectives from one start, and dual against single preference, from `benchmarks/results/`."""

import json
from pathlib import Path
from typing import Any

from cells import number, table

COLUMNS = {
    "truly_safe": "truly safe",
    "harmful_rate": "harmful answers",
    "over_refusal": "benign prompts refused",
    "reward": "reward",
    "repetition": "repetition",
}
"""Metrics of the table of objectives."""


def objective_results() -> str:
    """The table of all objectives, and the comparison of dual and single preference, as far as measured."""
    folder = Path(__file__).parents[1] / "benchmarks" / "results"
    parts = []
    for name, make in (("objectives", objective_tables), ("dual_against_single", dual_tables)):
        path = folder / f"{name}.json"
        head = f"## {'All objectives' if name == 'objectives' else 'Dual against single'}"
        told = make(json.loads(path.read_text("utf-8"))) if path.is_file() else ["Not measured yet."]
        parts += [head, *told]
    return "\n\n".join(parts)


def objective_tables(found: dict[str, Any]) -> list[str]:
    """Every cell against the base with its paired difference, what helps and what does not, and the seeds."""
    first = [cell for cell in found["cells"] if cell["seed"] == 0]
    minutes = sum(step["wall_seconds"] for step in found["steps"].values()) / 60
    machine, told = found["machine"], found["detection"]
    auroc, order = told["guard"]["auroc"], told["ordering"]["accuracy"]
    judged = f"unsafe answers, AUROC {number(auroc)}; safer answer of a pair {number(order)}"
    reward = f"; better answer {number(told['reward_ordering'])}" if told.get("reward_ordering") else ""
    base = ["none (base)", "", *(number(found["base"]["reported"][name]) for name in COLUMNS), ""]
    rows = [
        [
            cell["title"],
            cell["learns"],
            *(moved(cell["reported"][name]) for name in COLUMNS),
            f"{cell['minutes']:.1f}",
        ]
        for cell in first
    ]
    head = ["objective", "learns from", *COLUMNS.values(), "minutes"]
    pairs = found["pairs"]
    lines = [
        f"{minutes:.0f} minutes on {where(machine)}. The judges on held-out rows: {judged}{reward}.",
        f"Of the {pairs['pairs']} pairs {pairs['both_safe']} have two safe answers, {pairs['mixed']} one and"
        f" {pairs['both_unsafe']} none; in {pairs['better_is_not_safer']} the better is not the safer one.",
        table(head, [base, *rows]),
        "Below each value stands its difference from the base on the same prompts, 95 %.",
        *verdicts(first),
        *seed_table(found),
    ]
    if found["failed"]:
        lines.append("Failed: " + "; ".join(f"{key}: {why}" for key, why in found["failed"].items()) + ".")
    solved = (
        f"{key.rpartition('-')[0] or key} {entry['multiplier']:.3g} ({entry['constraint']})"
        for key, entry in found["multipliers"].items()
        if not key.endswith(tuple(f"-{seed}" for seed in range(1, 10)))
    )
    return [*lines, "Multipliers of the cost: " + ", ".join(solved) + "."]


def moved(told: dict[str, Any]) -> str:
    """A value, and below it how far it is from the base."""
    change = told["difference"]
    interval = f"[{change['low']:+.3f}, {change['high']:+.3f}]"
    return f"{told['value']['value']:.3f}<br>{change['value']:+.3f} {interval}"


def verdicts(cells: list[dict[str, Any]]) -> list[str]:
    """Which objectives help and which do not, by whether the interval of a difference excludes zero."""
    parts = []
    for name, good, words in (
        ("truly_safe", 1, "Truly safe answers"),
        ("harmful_rate", -1, "Harmful answers to harmful prompts"),
        ("over_refusal", -1, "Refused benign prompts"),
    ):
        kinds: dict[str, list[str]] = {"better": [], "no clear difference": [], "worse": []}
        for cell in cells:
            change = cell["reported"][name]["difference"]
            ends = sorted((good * change["low"], good * change["high"]))
            kind = "better" if ends[0] > 0 else "worse" if ends[1] < 0 else "no clear difference"
            kinds[kind].append(cell["title"])
        parts.append(f"- {words} against the base:")
        parts += [f"    - **{kind}**: {'; '.join(who) or 'none'}." for kind, who in kinds.items()]
    chance = f"Of {len(cells)} intervals of 95 % about one excludes zero by chance."
    return ["\n".join(parts), chance] if cells else []


def seed_table(found: dict[str, Any]) -> list[str]:
    """The objectives that were run with several seeds: each seed, and the mean."""
    names = dict.fromkeys(cell["name"] for cell in found["cells"] if cell["seed"] > 0)
    rows = []
    for name in names:
        cells = [cell for cell in found["cells"] if cell["name"] == name]
        row = [cells[0]["title"], str(len(cells))]
        for metric in COLUMNS:
            values = [cell["reported"][metric]["value"]["value"] for cell in cells]
            each = ", ".join(f"{value:.3f}" for value in values)
            row.append(f"{sum(values) / len(values):.3f}<br>({each})")
        rows.append(row)
    if not rows:
        return []
    best = [cell["title"] for cell in found["cells"] if cell["name"] in found["best_on_dev"]]
    told = (
        "DPO, SafeDPO and the two others with the highest truly safe share on the dev prompts"
        f" ({'; '.join(dict.fromkeys(best))}), mean over seeds and each seed:"
    )
    return [told, table(["objective", "seeds", *COLUMNS.values()], rows)]


ONE_SAFE = "safer answer, one of both is safe"
"""A part of the held-out pairs, in some runs all of them."""


def dual_tables(found: dict[str, Any]) -> list[str]:
    """Scorers on held-out pairs and policies on prompts: dual, single, and their paired difference."""
    votes = found["votes"]
    share = {name: f"{value:.1%}" for name, value in votes.items() if isinstance(value, float)}
    scorers = [
        [name, *(number(told[side]) for side in ("dual", "single", "difference"))]
        for name, told in found["scorers"].items()
        if name != ONE_SAFE or told != found["scorers"].get("safer answer")
    ]
    policies = [
        [title, *(number(told[side]) for side in ("base", "dual", "single", "difference"))]
        for name, title in COLUMNS.items()
        if (told := found["policies"].get(name))
    ]
    return [
        f"{found['minutes']:.0f} minutes on {where(found['machine'])}. **The raters are simulated.**"
        f" Their overall vote is the better answer in {share['overall_is_better']} of {votes['pairs']} pairs"
        f" and the safer one in {share['overall_is_safer']}; where they differ ({share['in_conflict']}), the"
        f" safer one in {share['overall_is_safer_in_conflict']}. Dual votes are right about the better answer"
        f" in {share['better_is_right']}, about the safer one in {share['safer_is_right']}.",
        table(["on held-out pairs, accuracy", "dual", "single", "dual less single"], scorers),
        table(["on prompts", "base", "dual (SafeDPO)", "single (DPO)", "dual less single"], policies),
        f"The dual policy learned from {found['rows']['dual']} pairs, the single one from"
        f" {found['rows']['single']}. The two differ in their objective as well as in their labels."
        + " ".join(
            ["", *(dual_verdict(name, found["policies"][name]) for name in ("truly_safe", "harmful_rate"))]
        ),
    ]


def dual_verdict(name: str, told: dict[str, Any]) -> str:
    """Which policy is ahead in a metric, if the interval of the difference tells."""
    change, good = told["difference"], -1 if name == "harmful_rate" else 1
    low, high = sorted((good * change["low"], good * change["high"]))
    ahead = (
        "the dual one is ahead"
        if low > 0
        else "the single one is ahead"
        if high < 0
        else "they are not told apart"
    )
    return f"In {COLUMNS[name]} {ahead}."


def where(machine: dict[str, Any]) -> str:
    """The processor that trained."""
    return str(machine.get("accelerator") or f"{machine['cores']} cores, {machine['processor']}")
