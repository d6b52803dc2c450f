"""A sample is as long as it should be, in order, and every item is as likely in it."""

from collections import Counter

import pytest

from equipoise.data.sampling import reservoir


def test_every_item_is_as_likely_and_order_stays() -> None:
    draws = [reservoir(range(10), 3, seed) for seed in range(4000)]
    assert all(drawn == sorted(set(drawn)) and len(drawn) == 3 for drawn in draws)
    counts = Counter(item for drawn in draws for item in drawn)
    assert all(count / 4000 == pytest.approx(0.3, abs=0.03) for count in counts.values())  # 4 deviations
    assert reservoir(range(10), 3, 7) == reservoir(iter(range(10)), 3, 7)
