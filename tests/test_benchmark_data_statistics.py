"""The copula of the benchmark: its formula, its fit, and that `data stats` recovers what it plants."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from equipoise.data.statistics import statistics

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = ["Economic Crime", "White-Collar Crime", "Cybercrime", "Drugs"]


@pytest.fixture(scope="module")
def copula() -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("data_statistics", FOLDER / "data_statistics.py")
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("common", None)
    return module


@pytest.mark.parametrize(
    ("h", "k", "rho"), [(1.2, 0.7, 0.3), (0.5, -0.4, -0.6), (-0.3, -1.0, 0.8), (1e-9, 1e-9, 0.5)]
)
def test_rate_of_both_equals_the_integral(copula: Any, h: float, k: float, rho: float) -> None:
    expected = multivariate_normal([0, 0], [[1, rho], [rho, 1]]).cdf([-h, -k])
    found = copula.both_exceed(np.array([h]), np.array([k]), np.array([rho]))
    assert found[0] == pytest.approx(expected, abs=1e-6)
    if h == k == 1e-9:
        assert found[0] == pytest.approx(0.25 + math.asin(rho) / (2 * math.pi), abs=1e-7)


def planted(copula: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    own = np.array([0.2, 0.12, 0.15, 0.3])
    rho = np.array([[1, 0.7, 0.2, -0.3], [0.7, 1, 0.1, -0.4], [0.2, 0.1, 1, -0.2], [-0.3, -0.4, -0.2, 1]])
    limits = ndtri(1 - own)
    return copula.of_copula(NAMES, limits, rho), limits, rho


def test_fit_finds_the_correlations_that_made_the_rates(copula: Any) -> None:
    rates, limits, rho = planted(copula)
    found_limits, found = copula.fit(rates)
    np.testing.assert_allclose(found_limits, limits)
    np.testing.assert_allclose(found, rho, atol=1e-3)


def test_statistics_recover_what_was_planted_within_the_error_of_a_draw(copula: Any) -> None:
    rates, limits, rho = planted(copula)
    flagged = copula.draw(limits, rho, 20_000, seed=1)
    labels = statistics(copula.records(NAMES, flagged)).response_labels
    assert labels is not None
    found = copula.errors(labels.model_dump(mode="json"), rates, len(flagged))
    assert found["share"]["max_in_standard_errors"] < 3.5
    assert found["conditional"]["max_in_standard_errors"] < 3.5
    assert found["phi"]["max"] < 0.03
    assert found["conditional"]["mean_standard_error"] < 0.01
    # a wrong plan would be noticed
    other = rates._replace(both=np.outer(rates.own, rates.own))
    assert copula.errors(labels.model_dump(mode="json"), other, len(flagged))["phi"]["max"] > 0.3
