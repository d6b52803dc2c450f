"""Which sketched rows of texts are similar: bands propose pairs, and their shingles are compared."""

import os
from typing import IO

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from equipoise.curation.minhash import Hashes, Sketches

Rows = NDArray[np.int64]

_PAIRS = 1024
"""Pairs whose shingles are in memory at a time."""
_LEADERS = 32
"""Members of one bucket that are compared with the others there, one after the other."""


class ShingleSets:
    """The shingles of rows of texts, in a file; memory holds where each text's lie."""

    def __init__(self, file: IO[bytes]) -> None:
        """Start empty; `file` is open for reading and writing."""
        self.file = file
        self._sizes: list[NDArray[np.int64]] = []
        self._ends = np.zeros(1, np.int64)
        self._parts = 1

    def add(self, sketches: Sketches) -> None:
        """Append the shingles of some rows."""
        self._sizes.append(sketches.sizes)
        self.file.write(sketches.shingles.tobytes())

    def finish(self) -> None:
        """Make what was added readable; call it once, before the first comparison."""
        self.file.flush()
        sizes = np.concatenate(self._sizes)
        self._ends = np.insert(sizes.ravel().cumsum(), 0, 0)
        self._parts = sizes.shape[1]
        self._sizes.clear()

    def jaccard(self, left: Rows, right: Rows) -> NDArray[np.float64]:
        """Return how similar pairs of rows are: the exact Jaccard index of the texts that are least alike."""
        values = np.empty(len(left))
        for start in range(0, len(left), _PAIRS):
            pairs = np.stack([left, right], axis=1)[start : start + _PAIRS].tolist()
            sets = {row: self._read(row) for row in sorted({row for pair in pairs for row in pair})}
            values[start : start + len(pairs)] = [
                min(map(_jaccard, sets[left_row], sets[right_row])) for left_row, right_row in pairs
            ]
        return values

    def _read(self, row: int) -> list[NDArray[np.uint32]]:
        ends = self._ends[row * self._parts : (row + 1) * self._parts + 1]
        # read, not mapped: pages of a mapped file would count as this process's memory
        data = os.pread(self.file.fileno(), 4 * int(ends[-1] - ends[0]), 4 * int(ends[0]))
        return [np.unique(text) for text in np.split(np.frombuffer(data, np.uint32), ends[1:-1] - ends[0])]


class Links:
    """The similar pairs that were found so far, and the groups that they make."""

    def __init__(self, sets: ShingleSets, rows: int, threshold: float) -> None:
        """Start without a link between the rows."""
        self.sets = sets
        self.threshold = threshold
        self.groups = np.arange(rows, dtype=np.int32)
        """[N] number of the group of each row."""
        self.compared = 0
        """Pairs that were compared."""
        self.passed_over = 0
        """Members of crowded buckets that were not compared with all others there."""
        nobody = np.zeros(0, np.int64)
        self._found: list[tuple[Rows, Rows, NDArray[np.float64]]] = [(nobody, nobody, np.zeros(0))]

    def search(self, keys: Hashes) -> None:
        """Compare the rows that agree in one band, [N] keys, and put similar ones into one group.

        The first member of a bucket leads: the others are compared with it, those that are similar leave
        with it, and the next one leads the rest. So a bucket of copies costs one comparison per copy.
        """
        members, buckets = _crowds(keys)
        for _ in range(_LEADERS):
            if not len(members):
                break
            leads = np.diff(buckets, prepend=-1) != 0
            leaders = members[leads][leads.cumsum() - 1]
            asked = self.groups[leaders] != self.groups[members]
            values = self.sets.jaccard(leaders[asked], members[asked])
            self.compared += len(values)
            hit = values >= self.threshold
            self._found.append((leaders[asked][hit], members[asked][hit], values[hit]))
            stays = asked.copy()
            stays[asked] = ~hit
            members, buckets = members[stays], buckets[stays]
        self.passed_over += len(members)
        left, right, _ = self.found()
        ones = np.ones(len(left), np.int8)
        graph = coo_array((ones, (left, right)), shape=(len(self.groups),) * 2)
        self.groups = connected_components(graph, directed=False)[1]

    def found(self) -> tuple[Rows, Rows, NDArray[np.float64]]:
        """Return the links: both ends of each, and how similar they are."""
        columns = zip(*self._found, strict=True)
        left, right, values = (np.concatenate(column) for column in columns)
        return left, right, values


def _crowds(keys: Hashes) -> tuple[Rows, Rows]:
    """Return the rows that share their key with another, bucket by bucket, and the bucket of each."""
    order = np.argsort(keys, kind="stable")
    buckets = (np.diff(keys[order], prepend=~keys[order[:1]]) != 0).cumsum() - 1
    crowded = np.bincount(buckets)[buckets] > 1
    return order[crowded], buckets[crowded]


def _jaccard(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> float:
    both = len(np.intersect1d(left, right, assume_unique=True))
    return both / (len(left) + len(right) - both)
