"""Does the consensus find the truth that a vote misses? Simulated annotators over real rows.

    python benchmarks/consensus.py --data DIR

The rows' own labels are the truth: safe or not of PKU answers, severity and categories of PyRIT answers.
The annotators are simulated, each with errors of its own, because no per-annotator labels are at hand.
Gains over the majority vote are per row, with intervals resampled by prompt; equal votes are drawn.
Preferences come from planted utilities of real answers. The last part looks for prompts that a model
labelled twice and not the same; nothing there is simulated.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from common import save
from scipy.special import expit
from scipy.stats import spearmanr

from equipoise.annotation.bradley_terry import Comparisons, bradley_terry
from equipoise.annotation.conflicts import find_conflicts
from equipoise.annotation.latent import fit, shares
from equipoise.annotation.rater_models import FullConfusion, Spammer, Thresholds
from equipoise.annotation.raters import Votes
from equipoise.curation.minhash import normalise
from equipoise.records import Prompt
from equipoise.stats import paired_difference

SEED = 0
SEVERITY = [(5.0, (0.5, 1.5, 2.5)), (3.0, (0.2, 1.2, 2.2)), (3.0, (0.8, 1.8, 2.8)), (1.2, (0.5, 1.6, 2.6))]
SEVERITY += [(1.0, (0.2, 1.4, 2.9)), (0.8, (0.7, 1.5, 2.4))]
"""Sharpness and thresholds of six raters: sharp ones, a strict and a mild one, three hasty ones."""
BINARY = [(0.96, 0.95), (0.92, 0.9), (0.85, 0.9), (0.55, 0.9), (0.5, 0.85), (0.6, 0.6)]
"""Share of the unsafe found and of the safe cleared, by each of six raters."""

Fit = Callable[[Votes], Any]
FITS: dict[str, Fit] = {
    "dawid-skene": lambda votes: fit(votes, FullConfusion()).posterior,
    "mace": lambda votes: fit(votes, Spammer(), uniform_prior=True).posterior,
    "ordinal": lambda votes: fit(votes, Thresholds()).posterior,
}


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]


def simulate(truth: np.ndarray, confusion: np.ndarray, each: int, rng: np.random.Generator) -> Votes:
    """Let `each` of the raters, drawn for every row, answer by their confusion matrix [R, K, V]."""
    raters, n = len(confusion), len(truth)
    chosen = rng.random((n, raters)).argsort(axis=1)[:, :each]
    item, rater = np.repeat(np.arange(n), each), chosen.ravel()
    bounds = confusion[rater, truth[item]].cumsum(axis=1)
    value = (rng.random((len(item), 1)) > bounds[:, :-1]).sum(axis=1)
    names = tuple(f"rater {r}" for r in range(raters))
    return Votes(item, rater, value, tuple(map(str, range(n))), names, tuple(range(confusion.shape[1])))


def majority(votes: Votes, rng: np.random.Generator) -> np.ndarray:
    found = shares(votes)
    return (found + 1e-6 * rng.random(found.shape)).argmax(axis=1)


def compare(
    truth: np.ndarray, prompts: list[str], confusion: np.ndarray, each: int, fits: tuple[str, ...]
) -> dict[str, Any]:
    """Return the share of right rows by vote and by each model, and its gain; mean level error too."""
    rng = np.random.default_rng(SEED)
    votes = simulate(truth, confusion, each, rng)
    guesses = {"majority": majority(votes, rng)}
    if confusion.shape[1] > 2:
        guesses["median"] = np.median(votes.value.reshape(-1, each), axis=1).astype(int)
    guesses |= {name: FITS[name](votes).argmax(axis=1) for name in fits}
    right = {name: (guess == truth).astype(float) for name, guess in guesses.items()}
    result: dict[str, Any] = {"rows": len(truth), "raters": len(confusion), "answers_each": each}
    for name, guess in guesses.items():
        found = {"accuracy": round(float(right[name].mean()), 4)}
        if confusion.shape[1] > 2:
            found["mean_level_error"] = round(float(np.abs(guess - truth).mean()), 4)
        if name != "majority":
            found["gain"] = paired_difference(right[name], right["majority"], prompts)._asdict()
        result[name] = found
    return result


def safety(folder: Path) -> dict[str, Any]:
    truth, prompts = [], []
    for name in ("pku_saferlhf_mini", "pku_saferlhf_pairs"):
        for row in rows(folder, name):
            truth += [int(not row[f"is_response_{i}_safe"]) for i in (0, 1)]
            prompts += [normalise(row["prompt"])] * 2
    confusion = np.array([[[cleared, 1 - cleared], [1 - found, found]] for found, cleared in BINARY])
    return {
        f"{each} answers": compare(np.array(truth), prompts, confusion, each, ("dawid-skene", "mace"))
        for each in (3, 5)
    }


def severity(folder: Path) -> dict[str, Any]:
    table = rows(folder, "pyrit_severity")
    truth, prompts = np.array([row["severity"] for row in table]), [normalise(row["prompt"]) for row in table]
    confusion = np.array([odds(sharpness, thresholds) for sharpness, thresholds in SEVERITY])
    names = ("dawid-skene", "ordinal", "mace")
    return {f"{each} answers": compare(truth, prompts, confusion, each, names) for each in (3, 5)}


def categories(folder: Path) -> dict[str, Any]:
    """Exact sets: a category is missed by a rater's share, and named wrongly once in fifty."""
    table = rows(folder, "pyrit_severity")
    prompts = [normalise(row["prompt"]) for row in table]
    names = sorted({name for row in table for name in row.get("harm_categories") or ()})
    right: dict[str, np.ndarray] = {}
    for number, name in enumerate(names):
        truth = np.array([int(name in (row.get("harm_categories") or ())) for row in table])
        confusion = np.array([[[0.98, 0.02], [1 - found, found]] for found, _ in BINARY])
        rng = np.random.default_rng(SEED + number)
        votes = simulate(truth, confusion, 3, rng)
        guesses = {"majority": majority(votes, rng), "dawid-skene": FITS["dawid-skene"](votes).argmax(axis=1)}
        for method, guess in guesses.items():
            right[method] = right.get(method, np.ones(len(table))) * (guess == truth)
    gain = paired_difference(right["dawid-skene"], right["majority"], prompts)
    found = {name: {"exact_sets": round(float(value.mean()), 4)} for name, value in right.items()}
    return {"rows": len(table), "categories": len(names), **found, "gain": gain._asdict()}


def odds(sharpness: float, thresholds: tuple[float, ...]) -> np.ndarray:
    above = expit(sharpness * (np.arange(4)[:, None] - np.array(thresholds)))
    return -np.diff(above, axis=1, prepend=1.0, append=0.0)


def preferences(folder: Path, votes_each: int = 9, nu: float = 0.5) -> dict[str, Any]:
    """Planted helpful and harmless utilities of PKU answers, compared within their prompts."""
    answers: dict[str, set[str]] = {}
    for row in rows(folder, "pku_saferlhf_pairs"):
        answers.setdefault(normalise(row["prompt"]), set()).update((row["response_0"], row["response_1"]))
    sets = [sorted(found) for found in answers.values() if len(found) > 2]
    numbers = iter(range(sum(map(len, sets))))
    groups = [[next(numbers) for _ in found] for found in sets]
    size = sum(map(len, groups))
    pairs = np.array([pair for group in groups for pair in combinations(group, 2)])
    first, second = np.repeat(pairs, votes_each, axis=0).T
    result: dict[str, Any] = {"prompts": len(groups), "answers": size, "comparisons": len(first)}
    for seed, name in enumerate(("helpful", "harmless")):
        rng = np.random.default_rng(SEED + seed)
        planted = rng.normal(0, 1.5, size)
        middle = nu * np.exp((planted[first] + planted[second]) / 2)
        weights = np.stack([np.exp(planted[first]), np.exp(planted[second]), middle])
        drawn = (rng.random(len(first)) > (weights / weights.sum(0)).cumsum(0)).sum(0)
        data = Comparisons(first, second, np.array([1.0, 0.0, 0.5])[np.minimum(drawn, 2)])
        found = bradley_terry(data, size)
        centred = np.concatenate([planted[group] - planted[group].mean() for group in groups])
        result[name] = {"rank_correlation": round(float(spearmanr(found.values, centred).statistic), 4)}
        result[name] |= {"planted_tie": nu, "tie": round(found.tie or 0.0, 3)}
    return result


def conflicts(folder: Path) -> Mapping[str, int]:
    table = rows(folder, "risk_kinds")
    records = [Prompt(id=r["id"], prompt=r["prompt"], provenance={"kind": r["risk_kind"]}) for r in table]
    texts = [normalise(row["prompt"]) for row in table]
    repeated = len({text for text in set(texts) if texts.count(text) > 1})
    return {"rows": len(table), "repeated": repeated, "conflicting": len(find_conflicts(records, ["kind"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the real rows, JSON Lines")
    folder = parser.parse_args().data
    parts = (safety, severity, categories, preferences, conflicts)
    result = {"seed": SEED, **{part.__name__: part(folder) for part in parts}}
    save("consensus", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
