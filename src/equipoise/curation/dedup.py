"""Near-copies among rows of texts: equal after normalising, or similar by the Jaccard index of shingles.

A row may be several texts, such as a prompt and a response: two rows are as similar as their least
similar texts, so that two answers to one long prompt are not taken for copies.

MinHash bands only propose pairs; each is compared on the shingles themselves, so a similarity that is
reported is exact. Time and memory grow with the number of texts and not with that of pairs.
"""

import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from equipoise.curation.links import Links, Rows, ShingleSets
from equipoise.curation.minhash import Sketcher, Unit, bands_for, normalise
from equipoise.engines import Engine, map_chunks

_TEXTS = 512
"""Texts that are sketched at a time."""


class Similarity(NamedTuple):
    """What counts as a near-copy, and how it is looked for."""

    threshold: float = 0.8
    """Jaccard index of the shingles from which on two texts are near-copies."""
    unit: Unit = "char"
    size: int = 5
    """Characters or words per shingle."""
    num_perm: int = 128
    """Permutations of the sketches."""
    recall: float = 0.98
    """Probability with which a pair right at the threshold is compared."""
    seed: int = 0

    @property
    def sketcher(self) -> Sketcher:
        """The operator that sketches texts with these settings."""
        bands, rows = bands_for(self.threshold, self.num_perm, self.recall)
        return Sketcher(self.unit, self.size, bands, rows, self.seed)


class Copy(NamedTuple):
    """A row that is a near-copy of one that is kept."""

    row: int
    of: int
    """The row that is kept."""
    similarity: float
    """Jaccard index of the two; 1 for equal texts."""
    through: int | None
    """Where that is under the threshold: the row of the group that this one is most similar to."""


class Found(NamedTuple):
    """The near-copies in order, and what the search did."""

    copies: list[Copy]
    rows: int
    exact: int
    """Rows whose normalised text stood before."""
    compared: int
    """Pairs that were compared."""
    passed_over: int
    """Members of crowded buckets that were not compared with all others there."""


def near_copies(
    texts: Iterable[str | tuple[str, ...]],
    similarity: Similarity,
    *,
    scores: Sequence[float] | None = None,
    scratch: Path | None = None,
    engine: Engine = "local",
    workers: int = 1,
) -> Found:
    """Group rows that are similar, directly or by a chain, and name the one that is kept of each group.

    Args:
        texts: A text per row, or as many texts for each. Read once; memory holds hashes only.
        similarity: What counts as a near-copy.
        scores: One per text, there when `texts` ends: the row with the highest of a group is kept, the
            first of equal ones. Without scores it is the first.
        scratch: Folder for the shingles, 4 bytes per character.
        engine: Where texts are sketched.
        workers: Processes or actors that sketch.
    """
    same = array("q")  # row -> the first row with its text
    bands = []
    with tempfile.TemporaryFile(dir=scratch) as file:
        sets = ShingleSets(file)
        distinct = _distinct(texts, same)
        for part in map_chunks(similarity.sketcher, distinct, engine=engine, workers=workers, chunk=_TEXTS):
            bands.append(part.bands)
            sets.add(part)
        if not bands:
            return Found([], 0, 0, 0, 0)
        sets.finish()
        keys = np.concatenate(bands)
        bands.clear()
        links = Links(sets, len(keys), similarity.threshold)
        for band in range(keys.shape[1]):
            links.search(keys[:, band])
        firsts, place = np.unique(np.array(same), return_inverse=True)
        copies = list(_copies(links, firsts, place, scores))
    return Found(copies, len(place), len(place) - len(firsts), links.compared, links.passed_over)


def _distinct(texts: Iterable[str | tuple[str, ...]], same: "array[int]") -> Iterator[list[str]]:
    """Yield the normalised rows that did not stand before, and note for every row where the same stands."""
    seen: dict[bytes, int] = {}
    for row, text in enumerate(texts):
        clean = [normalise(text)] if isinstance(text, str) else list(map(normalise, text))
        whole = "\0".join(clean).encode("utf-8", "surrogatepass")
        first = seen.setdefault(xxhash.xxh3_128_digest(whole), row)
        same.append(first)
        if first == row:
            yield clean


def _copies(links: Links, firsts: Rows, place: Rows, scores: Sequence[float] | None) -> Iterator[Copy]:
    """Yield the rows to drop. `firsts` are the rows of the distinct texts, `place` each row's among them."""
    groups = links.groups[place]
    ranked = np.arange(len(place)) if scores is None else np.argsort(-np.asarray(scores), kind="stable")
    _, best = np.unique(groups[ranked], return_index=True)
    kept = ranked[best][groups]
    rows = np.flatnonzero(kept != np.arange(len(place)))
    values = np.ones(len(rows))
    other = place[rows] != place[kept[rows]]
    values[other] = links.sets.jaccard(place[rows[other]], place[kept[rows[other]]])
    nearest = _nearest(links)
    for row, value in zip(rows.tolist(), values.tolist(), strict=True):
        through = int(firsts[nearest[place[row]]]) if value < links.threshold else None
        yield Copy(row, int(kept[row]), value, through)


def _nearest(links: Links) -> NDArray[np.int64]:
    """Return for each distinct text the one that it is linked to by the greatest similarity."""
    left, right, values = links.found()
    order = np.argsort(values, kind="stable")
    nearest = np.arange(len(links.groups))
    # a later assignment wins, so the most similar stands at the end
    ends = np.concatenate([left[order], right[order]]).reshape(2, -1).T.ravel()
    nearest[ends] = np.concatenate([right[order], left[order]]).reshape(2, -1).T.ravel()
    return nearest
