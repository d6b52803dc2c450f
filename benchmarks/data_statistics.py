"""Does `data stats` recover planted frequencies and co-occurrences of harm categories?

    python benchmarks/data_statistics.py --reference DIR

DIR holds `category_frequency.csv` and `category_conditional_cooccurrence.csv`, counts of a real release
over its responses. A Gaussian copula is fitted to them: category i is flagged where a normal variable
exceeds a threshold, and two variables correlate so that both categories are flagged as often as they are
in the release, as nearly as one correlation matrix can have it. Label sets are drawn from it, written as
records, and counted by the command; only errors are reported, no number of the release.

Errors against the copula are those of the draw and of `data stats`, and stand beside the standard error
of a draw. Errors against the release are larger by what a Gaussian copula cannot express.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import save
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import ndtr, ndtri, owens_t

from equipoise.data.io import write_records
from equipoise.records import Exchange

Floats = NDArray[np.float64]


class Rates(NamedTuple):
    """What is planted: C categories, rates over all responses."""

    names: list[str]
    own: Floats
    """[C]"""
    both: Floats
    """[C, C], the diagonal is `own`."""


def read_rates(folder: Path) -> Rates:
    """Read the counts of a release."""
    with (folder / "category_frequency.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [row["category"] for row in rows]
    own = np.array([float(row["share_of_response_positions"]) for row in rows])
    both = np.diag(own)
    with (folder / "category_conditional_cooccurrence.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            a, b = names.index(row["conditioning_category"]), names.index(row["other_category"])
            both[a, b] = own[a] * float(row["p_other_given_conditioning"])
    return Rates(names, own, (both + both.T) / 2)


def both_exceed(h: Floats, k: Floats, rho: Floats) -> Floats:
    """P(X > h, Y > k) of two standard normal variables with correlation rho. Owen 1956.

    The thresholds must not be zero: those of rates other than 0.5 are not.
    """
    root = np.sqrt(1 - rho**2)
    part = owens_t(h, (k / h - rho) / root) + owens_t(k, (h / k - rho) / root)
    value: Floats = 1 - (ndtr(h) + ndtr(k)) / 2 - part - np.where(h * k < 0, 0.5, 0.0)
    return value


def fit(rates: Rates) -> tuple[Floats, Floats]:
    """Return thresholds [C] and the correlation matrix [C, C] of the copula.

    The matrix is U U' with rows of length one, so that it is one; U gives the least sum of squared errors
    of P(b | a), the larger of the two for each pair. The derivative of the rate of both with respect to
    the correlation is the density of the two variables at the thresholds (Plackett 1954).
    """
    limits, size = ndtri(1 - rates.own), len(rates.own)
    h, k = np.broadcast_arrays(limits[:, None], limits[None, :])
    weight = np.minimum.outer(rates.own, rates.own) ** -2.0
    np.fill_diagonal(weight, 0)

    def loss(flat: Floats) -> tuple[float, Floats]:
        rows = flat.reshape(size, size)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / length
        rho = np.clip(unit @ unit.T, -0.9999, 0.9999) * (weight > 0)
        wrong = both_exceed(h, k, rho) - rates.both
        density = np.exp(-(h * h - 2 * rho * h * k + k * k) / (2 * (1 - rho**2)))
        density /= 2 * np.pi * np.sqrt(1 - rho**2)
        slope = 4 * (weight * wrong * density) @ unit
        slope = (slope - (slope * unit).sum(axis=1, keepdims=True) * unit) / length
        return float((weight * wrong**2).sum()), slope.ravel()

    start = np.linalg.cholesky(0.8 * np.eye(size) + 0.2)
    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 3000})
    unit = found.x.reshape(size, size)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return limits, unit @ unit.T


def draw(limits: Floats, rho: Floats, rows: int, seed: int) -> NDArray[np.bool_]:
    """Draw label sets, [rows, C]."""
    values, vectors = np.linalg.eigh(rho)  # some are zero
    normal = np.random.default_rng(seed).standard_normal((rows, len(limits)))
    flagged: NDArray[np.bool_] = normal @ (vectors * np.sqrt(np.maximum(values, 0))).T > limits
    return flagged


def records(names: Sequence[str], flagged: NDArray[np.bool_]) -> list[Exchange]:
    """Return records with the label sets; one without a category is safe."""
    columns = np.array(names)
    return [
        Exchange(
            id=str(number),
            prompt="a prompt",
            response="a response",
            is_safe=not row.any(),
            categories=frozenset(columns[row].tolist()),
        )
        for number, row in enumerate(flagged)
    ]


def count(names: Sequence[str], flagged: NDArray[np.bool_]) -> dict[str, Any]:
    """Return what `equipoise data stats --json` says of the responses."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.jsonl"
        write_records(path, records(names, flagged))
        command = [sys.executable, "-m", "equipoise", "data", "stats", str(path), "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["response_labels"]
    return found


def errors(found: dict[str, Any], rates: Rates, rows: int) -> dict[str, dict[str, float]]:
    """Return the errors of shares, of P(b | a) and of phi.

    Phi is compared with what the planted rates give for the drawn number of unsafe responses, since they
    do not say how many have no category at all.
    """
    names, correlation = rates.names, found["correlation"]
    places = [correlation["names"].index(name) for name in names]
    given = np.array(correlation["conditional"], dtype=float)[np.ix_(places, places)]
    phi = np.array(correlation["phi"], dtype=float)[np.ix_(places, places)]
    off = ~np.eye(len(names), dtype=bool)
    share = np.array([found["category_share"][name] for name in names])
    planted = rates.both / rates.own[:, None]
    unsafe = correlation["n"] / rows
    own, both = rates.own / unsafe, rates.both / unsafe
    spread = np.sqrt(own * (1 - own))
    expected = (both - np.outer(own, own)) / np.outer(spread, spread)
    return {
        "share": error(share, rates.own, rows),
        "conditional": error(given[off], planted[off], (rows * rates.own[:, None] + 0 * planted)[off]),
        "phi": error(phi[off], expected[off]),
    }


def error(found: Floats, planted: Floats, n: Floats | int | None = None) -> dict[str, float]:
    """Return the largest and mean absolute error; of shares of n rows, with the standard error of a draw."""
    distance = np.abs(found - planted)
    result = {"max": distance.max(), "mean": distance.mean()}
    if n is not None:
        standard = np.sqrt(planted * (1 - planted) / n)
        drawn = standard > 0  # what never occurs is never drawn
        result |= {
            "mean_standard_error": standard.mean(),
            "max_in_standard_errors": (distance[drawn] / standard[drawn]).max(),
        }
    return {name: round(float(value), 5) for name, value in result.items()}


def of_copula(names: list[str], limits: Floats, rho: Floats) -> Rates:
    """Return the rates that the copula has."""
    own = 1 - ndtr(limits)
    h, k = np.broadcast_arrays(limits[:, None], limits[None, :])
    both = both_exceed(h, k, np.where(np.eye(len(limits), dtype=bool), 0, rho))
    np.fill_diagonal(both, own)
    return Rates(names, own, both)


def main() -> None:
    """Fit, draw, count, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True, help="folder of the release's counts")
    parser.add_argument("--rows", type=int, default=150_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rates = read_rates(arguments.reference)
    limits, rho = fit(rates)
    found = count(rates.names, draw(limits, rho, arguments.rows, arguments.seed))
    result = {
        "rows": arguments.rows,
        "seed": arguments.seed,
        "against_the_release": errors(found, rates, arguments.rows),
        "against_the_copula": errors(found, of_copula(rates.names, limits, rho), arguments.rows),
    }
    print(json.dumps(result, indent=1))
    save("data_statistics", result)


if __name__ == "__main__":
    main()
