"""Correlation of categories against plain floats, numpy, and matrices small enough to do by hand."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.data.correlation import LabelSet, cluster_order, correlate

NAMES = ("a", "b", "c", "d")

# a b c d
TOY = [
    (1, 1, 0, 0),
    (1, 1, 0, 0),
    (1, 0, 0, 0),
    (0, 1, 1, 0),
    (0, 0, 1, 0),
    (0, 0, 1, 0),
    (1, 0, 0, 0),
]


def counted(rows: list[tuple[int, ...]]) -> Counter[LabelSet]:
    return Counter(
        LabelSet(frozenset(name for name, flag in zip(NAMES, row, strict=True) if flag)) for row in rows
    )


def plain_phi(x: list[int], y: list[int]) -> float:
    """Pearson's r, in plain floats."""
    n, mean_x, mean_y = len(x), sum(x) / len(x), sum(y) / len(y)
    covariance = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True)) / n
    spread = math.sqrt(sum((p - mean_x) ** 2 for p in x) / n * sum((q - mean_y) ** 2 for q in y) / n)
    return covariance / spread


def test_phi_of_a_toy_matrix_is_pearsons_r() -> None:
    found = correlate(counted(TOY), NAMES)
    assert (found.n, found.names) == (7, ["a", "b", "c"])
    columns = [[row[i] for row in TOY] for i in range(3)]
    for i in range(3):
        for j in range(3):
            assert found.phi[i][j] == pytest.approx(plain_phi(columns[i], columns[j]), abs=1e-15)
    np.testing.assert_allclose(np.array(found.phi, float), np.corrcoef(columns), atol=1e-14)


def test_conditional_and_solo_rates_of_a_toy_matrix_are_exact() -> None:
    found = correlate(counted(TOY), NAMES)
    assert found.conditional == [
        [1.0, 2 / 4, 0.0],
        [2 / 3, 1.0, 1 / 3],
        [0.0, 1 / 3, 1.0],
    ]
    assert found.solo == {"a": 2 / 4, "b": 0.0, "c": 2 / 3}
    assert [pair[:2] for pair in found.strongest(2)] == [("b", "a"), ("c", "b")]


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 4), min_size=2, max_size=40))
def test_phi_equals_numpy_on_any_rows_and_is_undefined_where_a_column_does_not_vary(
    rows: list[tuple[int, ...]],
) -> None:
    found = correlate(counted(rows), NAMES)
    for i, a in enumerate(found.names):
        for j, b in enumerate(found.names):
            x, y = ([row[NAMES.index(name)] for row in rows] for name in (a, b))
            if len(set(x)) == 1 or len(set(y)) == 1:
                assert found.phi[i][j] is None
            else:
                assert found.phi[i][j] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)
    assert sorted(found.order) == found.names


def test_a_category_that_nobody_looked_at_is_neither_present_nor_absent() -> None:
    both = frozenset({"a", "b"})
    counts = {
        LabelSet(both): 3,
        LabelSet(frozenset({"a"})): 1,
        LabelSet(frozenset({"b"})): 2,
        LabelSet(frozenset()): 4,
        LabelSet(frozenset({"a"}), frozenset({"a"})): 50,  # says nothing of b
    }
    found = correlate(counts, NAMES)
    x, y = [1] * 4 + [0] * 6, [1] * 3 + [0] + [1] * 2 + [0] * 4
    assert found.phi[0][1] == pytest.approx(plain_phi(x, y), abs=1e-15)
    assert found.conditional[0][1] == 3 / 4
    assert found.solo["a"] == 51 / 54


def test_alike_columns_become_neighbours() -> None:
    phi = np.full((6, 6), -0.05)
    for first, second in ((0, 3), (1, 4), (2, 5)):
        phi[first, second] = phi[second, first] = 0.6
    phi[0, 5] = phi[5, 0] = 0.2  # so that the first and the last pair meet
    np.fill_diagonal(phi, 1)
    order = cluster_order(phi)
    assert sorted(order) == list(range(6))
    for first, second in ((0, 3), (1, 4), (2, 5), (0, 5)):
        assert abs(order.index(first) - order.index(second)) == 1


def test_few_columns_and_undefined_values_have_an_order_too() -> None:
    assert cluster_order(np.full((2, 2), np.nan)) == [0, 1]
    assert sorted(cluster_order(np.full((3, 3), np.nan))) == [0, 1, 2]
    assert correlate({LabelSet(frozenset({"a"})): 2}, NAMES).order == ["a"]
