"""Texts as sets of shingles, and the MinHash sketches by which similar sets meet.

Own code, because a loop over a MinHash library spends its time on one object per text: here a block of
texts is one array of shingles, and a permutation is one multiplication over all of them. Shapes: N rows,
P texts per row, S shingles of all texts, K permutations, B bands.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

Unit = Literal["char", "word"]
"""What shingles are made of."""

Hashes = NDArray[np.uint64]

_BLOCK = 1 << 15
"""Shingles that are permuted at a time: an array of them stays in the processor's cache."""


class Sketches(NamedTuple):
    """What is kept of a block of rows."""

    bands: Hashes
    """[N, B]; two rows are candidates where they agree in a band."""
    sizes: NDArray[np.int64]
    """[N, P] how many shingles each text has."""
    shingles: NDArray[np.uint32]
    """[S] the shingles of each text, one text behind the other."""


@dataclass(frozen=True)
class Sketcher:
    """Turns rows of texts into sketches; equal settings give equal sketches."""

    unit: Unit = "char"
    size: int = 5
    """Characters or words per shingle."""
    bands: int = 18
    rows: int = 7
    """Permutations per band."""
    seed: int = 0

    def __call__(self, rows: Sequence[Sequence[str]]) -> Sketches:
        """Sketch rows of normalised texts, as many in each; a row is one set, of (place, shingle)."""
        flat, shingles = shingles_of([text for row in rows for text in row], self.unit, self.size)
        sizes = flat.reshape(len(rows), -1)
        places = np.tile(np.arange(sizes.shape[1], dtype=np.uint32), len(rows)) * np.uint32(0x9E3779B1)
        signatures = minhash(
            sizes.sum(axis=1), shingles + np.repeat(places, flat), self.bands * self.rows, self.seed
        )
        return Sketches(_band_keys(signatures, self.rows), sizes, shingles)


def normalise(text: str) -> str:
    """Return a text in the form in which it is compared: NFKC, case folded, white space made single.

    >>> normalise("  HELLO\\n world ")
    'hello world'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def bands_for(threshold: float, permutations: int, recall: float) -> tuple[int, int]:
    """Return the bands and the rows per band that find most similar pairs with the fewest others.

    The most rows with which a pair right at the threshold t agrees in a band with probability
    1 - (1 - t^rows)^bands >= recall. Leskovec, Rajaraman, Ullman 2014, 3.4.

    >>> bands_for(0.8, 128, 0.98)
    (18, 7)
    """
    rows = 1
    while rows < permutations and _caught(threshold, permutations // (rows + 1), rows + 1) >= recall:
        rows += 1
    return permutations // rows, rows


def _caught(similarity: float, bands: int, rows: int) -> float:
    return 1 - (1 - similarity**rows) ** bands


def shingles_of(texts: Sequence[str], unit: Unit, size: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Return how many shingles each text has, [N], and their hashes, one text behind the other, [S].

    One begins at every unit; a text is followed by `size` - 1 blanks, so that a short one has shingles too.
    """
    blank = np.zeros(size - 1, np.uint64)
    parts = [part for text in texts for part in (_units(text, unit), blank)]
    sizes = np.array([len(part) for part in parts[::2]], np.int64)
    units = np.concatenate([*parts, blank])
    mixed = np.zeros(len(units) - size + 1, np.uint64)
    for offset in range(size):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + units[offset : offset + len(mixed)]
    begins = np.repeat(np.arange(2 * len(texts)) % 2 == 0, [len(part) for part in parts])
    return sizes, (_scrambled(mixed[begins]) >> np.uint64(32)).astype(np.uint32)


def minhash(
    sizes: NDArray[np.int64], shingles: NDArray[np.uint32], permutations: int, seed: int
) -> NDArray[np.uint32]:
    """Return the signatures, [N, K]: of each set the least shingle after each of K permutations.

    Broder 1997. The permutations are x -> (a x + b) mod 2^32 with odd a, on shingles that are hashes.
    """
    drawn = np.random.default_rng(seed).integers(0, 2**32, (2, permutations), dtype=np.uint32)
    factors, offsets = drawn[0] | np.uint32(1), drawn[1]
    signatures = np.empty((len(sizes), permutations), np.uint32)
    ends = sizes.cumsum()
    first = 0
    while first < len(sizes):
        start = ends[first] - sizes[first]
        last = max(first + 1, int(np.searchsorted(ends, start + _BLOCK)))
        block = shingles[start : ends[last - 1]]
        begins = ends[first:last] - sizes[first:last] - start
        moved = np.empty_like(block)
        for k in range(permutations):
            np.multiply(block, factors[k], out=moved)
            moved += offsets[k]
            signatures[first:last, k] = np.minimum.reduceat(moved, begins)
        first = last
    return signatures


def _units(text: str, unit: Unit) -> Hashes:
    if unit == "word":
        words = (word.encode("utf-8", "surrogatepass") for word in text.split())
        return np.array([xxhash.xxh3_64_intdigest(word) for word in words] or [0], np.uint64)
    return np.frombuffer((text or "\0").encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)


def _scrambled(values: Hashes) -> Hashes:
    """Spread the bits of sums of products. The finaliser of MurmurHash3 (Appleby 2011)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _band_keys(signatures: NDArray[np.uint32], rows: int) -> Hashes:
    """Return one hash per band, [N, B]."""
    keys = np.zeros((len(signatures), signatures.shape[1] // rows), np.uint64)
    for row in range(rows):
        keys = _scrambled(keys + signatures[:, row::rows] + np.uint64(1))
    return keys
