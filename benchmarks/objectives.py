"""All objectives of the preference engine from one start on the same pairs, judged alike.

    python benchmarks/objectives.py --data DIR [--runs DIR] [--only dpo,safe_dpo] [--seeds 3]

SmolLM2-135M learns from 150 pairs of PKU-SafeRLHF by each objective with the settings that its authors or
this library give it; nothing is tuned on what is reported. DIR holds rows as for
`recipes/pku-saferlhf-small.yaml`, split once by prompt: guard and scorer that judge learn from one part; from
another learns the scorer that says which answer is better, which the rows do not; the policies learn from a
third. Each policy answers 100 built-in prompts that no model here has seen, and 40 others, the dev prompts.
DPO, SafeDPO and the two other objectives with the highest truly safe share on the dev prompts are run with
three seeds. `results/objectives.json` is written anew as each cell finishes, and the same command after a
kill does what is left.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from common import ROOT, save
from objectives_cells import BETA, CELLS, NEEDS_MULTIPLIER, Settings, recipe
from side_rows import has_bf16

from equipoise.data.rows import read_rows
from equipoise.errors import ConfigError, EquipoiseError, RunStoppedError, near
from equipoise.evaluation.compare import compare
from equipoise.evaluation.files import plain
from equipoise.evaluation.metrics import measure
from equipoise.evaluation.rows import load_run
from equipoise.objectives.constraints import ascend, solve_dual
from equipoise.pipeline.one_shot import read_scored
from equipoise.pipeline.run import run_recipe
from equipoise.pipeline.summary import Finished
from equipoise.progress import say

METRICS = ("harmful_rate", "over_refusal", "truly_safe", "reward", "repetition", "words")
ALWAYS = ("dpo", "safe_dpo")
"""Objectives that are run with all seeds whatever comes out."""


class Table:
    """The runs, and what is known of them so far."""

    def __init__(self, settings: Settings, runs: Path, seeds: int) -> None:
        """Hold the settings; `runs` is the folder of all steps."""
        self.settings, self.runs, self.seeds = settings, runs, seeds
        self.kinds = ("reported", "dev") if seeds > 1 else ("reported",)  # dev prompts choose who gets seeds
        self.multipliers: dict[str, float] = {}
        self.found: dict[str, Any] = {
            "settings": settings.model_dump(exclude={"data"}),
            "base": {},
            "cells": [],
            "failed": {},
            "multipliers": {},
            "steps": {},
        }

    def step(self, name: str) -> Finished:
        """Run a step and those that it needs; keep what each cost."""
        done = run_recipe(recipe(self.settings, self.seeds, self.multipliers), self.runs, only=name)
        for each in done:
            self.found["steps"][each.name] = each.manifest.model_dump(include={"wall_seconds", "cpu_seconds"})
        return done[-1]

    def start(self) -> None:
        """Run what all cells share: data, judges, base."""
        detection = self.step("detection")
        self.found["detection"] = json.loads((detection.place / "detection.json").read_text("utf-8"))
        self.found["pairs"] = dict(self.step("chosen").manifest.notes)
        for kind in self.kinds:
            values = measure(load_run(self.step(f"base-{kind}").place).rows).values
            self.found["base"][kind] = {name: plain(values[name]) for name in METRICS if name in values}
        self.save()

    def cell(self, name: str, seed: int) -> None:
        """Train and evaluate one cell; a failure is kept as its result."""
        key = f"{name}-{seed}"
        try:
            if name in NEEDS_MULTIPLIER:
                self.multiply(name, seed)
            trained = self.step(key)
            found = {"name": name, "seed": seed, **CELLS[name]._asdict()}
            for kind in self.kinds if seed == 0 else ("reported",):
                found[kind] = self.against_base(self.step(f"{key}-{kind}"), kind)
        except (EquipoiseError, RunStoppedError) as exc:
            say(f"{key}: failed: {exc}")
            self.found["failed"][key] = str(exc)
        else:
            found["minutes"] = round(self.minutes(key), 2)
            found["rows"] = trained.manifest.notes.get("rows")
            self.found["cells"].append(found)
        self.save()

    def against_base(self, evaluated: Finished, kind: str) -> dict[str, Any]:
        """Metrics of an evaluation, and their paired differences from the base."""
        base = load_run(self.step(f"base-{kind}").place)._replace(name="base")
        told = compare(base, load_run(evaluated.place)).metrics
        return {
            name: {"value": plain(told[name].after), "difference": plain(told[name].difference)}
            for name in METRICS
            if name in told
        }

    def multiply(self, name: str, seed: int) -> None:
        """Find the multiplier of a cell.

        The budget is half way between the mean cost of the reference and that of its cheapest answers.
        Constrained DPO has that of MoCAN, and ascends once, from 1, by what its first policy costs.
        """
        scored = self.step(f"pecan_sampled-{seed}" if name == "pecan" else "scored").place
        multiplier, budget, told = one_shot(scored)
        if name == "constrained_dpo":
            rows = read_rows(self.step(f"constrained_scored-{seed}").place)
            cost = fmean(row.values["cost"] for row in rows)
            multiplier = ascend(1.0, cost, budget=budget, lr=1.0)
            told = {"constraint": "one round of ascent", "cost_of_first_policy": cost}
        key = name if name == "mocan" else f"{name}-{seed}"
        self.multipliers[key] = multiplier
        self.found["multipliers"][key] = {"multiplier": multiplier, "budget": budget, **told}

    def best(self) -> list[str]:
        """Return the two objectives with the highest truly safe share on the dev prompts, beside ALWAYS.

        None where they were not asked, with one seed.
        """
        shares = {
            each["name"]: each["dev"]["truly_safe"]["value"]["value"]
            for each in self.found["cells"]
            if each["seed"] == 0 and each["name"] not in ALWAYS and "dev" in each
        }
        return sorted(shares, key=lambda name: -shares[name])[:2]

    def minutes(self, key: str) -> float:
        """Minutes that a cell's last training and its evaluations took, not what it shares with others."""
        names = (key, f"{key}-reported", f"{key}-dev")
        return sum(self.found["steps"].get(name, {}).get("wall_seconds", 0.0) for name in names) / 60

    def save(self) -> None:
        """Write `results/objectives.json`."""
        save("objectives", self.found)


def one_shot(path: Path) -> tuple[float, float, dict[str, Any]]:
    """Multiplier and budget from scored responses of the reference, and what is told of them."""
    asked = read_scored(path, Counter())
    reward, cost = (
        torch.tensor([[getattr(row, head) for row in each.responses] for each in asked], dtype=torch.float64)
        for head in ("reward", "cost")
    )
    budget = (cost.mean() + cost.amin(dim=1).mean()).item() / 2
    found = solve_dual(reward, cost, budget=budget, beta=BETA)
    told = {"constraint": found.state, "cost_of_reference": cost.mean().item(), "cost_expected": found.cost}
    return found.multiplier, budget, told


def fill(table: Table, names: Sequence[str]) -> None:
    """Do all cells with the first seed, then the other seeds of those that get them."""
    for name in names:
        if name not in CELLS:
            raise ConfigError(f"--only: no objective '{name}'{near(name, CELLS)}; known: {', '.join(CELLS)}")
    table.start()
    for name in names:
        table.cell(name, seed=0)
    table.found["best_on_dev"] = table.best()
    table.save()
    again = [name for name in (*ALWAYS, *table.found["best_on_dev"]) if name in names]
    for seed in range(1, table.seeds):
        for name in again:
            table.cell(name, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with the rows")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the runs lie")
    parser.add_argument("--only", default=",".join(CELLS), help="objectives to do, parted by commas")
    parser.add_argument("--seeds", type=int, default=3, help="of the objectives that have several")
    given = parser.parse_args()
    settings = Settings(data=given.data, bf16=has_bf16())
    try:
        fill(Table(settings, given.runs / "objectives", given.seeds), given.only.split(","))
    except (EquipoiseError, RunStoppedError) as exc:
        raise SystemExit(f"error: {exc}") from exc


if __name__ == "__main__":
    main()
