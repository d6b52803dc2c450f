"""A few of many rows, in the order they came, with no more than these in memory."""

import random
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def reservoir(items: Iterable[Item], size: int, seed: int) -> list[Item]:
    """Draw `size` items, each as likely as any other; all of them where there are no more.

    Vitter 1985, algorithm R.

    >>> reservoir("abc", 5, seed=0)
    ['a', 'b', 'c']
    """
    rng = random.Random(seed)
    kept: list[tuple[int, Item]] = []
    for place, item in enumerate(items):
        if place < size:
            kept.append((place, item))
        elif (slot := rng.randrange(place + 1)) < size:
            kept[slot] = (place, item)
    return [item for _, item in sorted(kept, key=lambda each: each[0])]
