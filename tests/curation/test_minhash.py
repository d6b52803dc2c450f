"""Shingles against sets of slices, sketches against the exact Jaccard index."""

import random
import string

import numpy as np
import pytest

from equipoise.curation.minhash import Sketcher, bands_for, minhash, normalise, shingles_of


def words(count: int, rng: random.Random) -> list[str]:
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(count)]


def sets_of(texts: list[str], unit: str, size: int) -> list[set[int]]:
    sizes, shingles = shingles_of(texts, unit, size)
    parts = np.split(shingles, sizes.cumsum()[:-1])
    return [set(part.tolist()) for part in parts]


def slices(units: list[str] | str, size: int) -> set[tuple[str, ...]]:
    """The shingles that begin at each unit, blanks behind the last, as the module says."""
    padded = [*units, *[""] * (size - 1)]
    return {tuple(padded[i : i + size]) for i in range(len(units))}


@pytest.mark.parametrize(("unit", "size"), [("char", 5), ("char", 1), ("word", 1), ("word", 3)])
def test_shingles_meet_as_slices_of_the_text_do(unit: str, size: int) -> None:
    rng = random.Random(0)
    vocabulary = words(12, rng)
    texts = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 30))) for _ in range(40)] + ["a", "é☃"]
    hashed = sets_of(texts, unit, size)
    exact = [slices(text if unit == "char" else text.split(), size) for text in texts]
    assert [len(a) for a in hashed] == [len(b) for b in exact]
    for i in range(len(texts)):
        for j in range(i):
            assert len(hashed[i] & hashed[j]) == len(exact[i] & exact[j])


@pytest.mark.parametrize("unit", ["char", "word"])
def test_a_text_has_the_same_shingles_whatever_stands_beside_it(unit: str) -> None:
    texts = ["short", "a much longer text than the others", "", "x", "", "end"]
    alone = [sets_of([text], unit, 4)[0] for text in texts]
    assert sets_of(texts, unit, 4) == alone
    assert all(alone)  # an empty text has a shingle too, so that it can be sketched


def test_agreement_of_signatures_estimates_the_jaccard_index() -> None:
    rng = random.Random(1)
    pairs = []
    for _ in range(60):
        one = words(60, rng)
        other = [w if rng.random() < 0.9 else words(1, rng)[0] for w in one]
        pairs += [" ".join(one), " ".join(other)]
    permutations = 256
    signatures = minhash(*shingles_of(pairs, "char", 5), permutations, seed=3)
    sets = sets_of(pairs, "char", 5)
    estimates = (signatures[::2] == signatures[1::2]).mean(axis=1)
    exact = np.array([len(a & b) / len(a | b) for a, b in zip(sets[::2], sets[1::2], strict=True)])
    spread = np.sqrt(exact * (1 - exact) / permutations)
    z = (estimates - exact) / spread
    assert 0.3 < exact.min() < exact.max() < 0.99
    assert abs(z.mean()) < 3 / np.sqrt(len(z))  # unbiased
    assert 0.7 < z.std() < 1.3  # and no noisier than independent permutations are


def test_signatures_are_the_least_of_each_permutation_whatever_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [" ".join(words(n, random.Random(n))) for n in (1, 50, 3, 400, 7)]
    sizes, shingles = shingles_of(texts, "char", 5)
    whole = minhash(sizes, shingles, 8, seed=0)
    drawn = np.random.default_rng(0).integers(0, 2**32, (2, 8), dtype=np.uint32)
    for row, part in enumerate(np.split(shingles, sizes.cumsum()[:-1])):
        for k, (a, b) in enumerate(drawn.T.tolist()):
            assert whole[row, k] == min(((a | 1) * x + b) % 2**32 for x in part.tolist())
    monkeypatch.setattr("equipoise.curation.minhash._BLOCK", 100)
    assert (minhash(sizes, shingles, 8, seed=0) == whole).all()


def test_bands_agree_where_all_their_rows_do() -> None:
    texts = ["the quick brown fox jumps over it", "the quick brown fox jumped over it", "nothing alike"]
    sketcher = Sketcher(bands=6, rows=2)
    rows = [(text,) for text in texts]
    keys = sketcher(rows).bands
    signatures = minhash(*shingles_of(texts, "char", 5), 12, seed=0).reshape(3, 6, 2)
    for i in range(3):
        for j in range(3):
            assert ((keys[i] == keys[j]) == (signatures[i] == signatures[j]).all(-1)).all()
    assert (keys[0] == keys[1]).any()
    assert (Sketcher(bands=6, rows=2, seed=1)(rows).bands != keys).any()


@pytest.mark.parametrize(("threshold", "permutations", "recall"), [(0.8, 128, 0.98), (0.5, 128, 0.95)])
def test_bands_catch_a_pair_at_the_threshold(threshold: float, permutations: int, recall: float) -> None:
    bands, rows = bands_for(threshold, permutations, recall)
    assert bands * rows <= permutations
    assert 1 - (1 - threshold**rows) ** bands >= recall
    wider = permutations // (rows + 1)
    assert 1 - (1 - threshold ** (rows + 1)) ** wider < recall


def test_what_looks_alike_is_compared_alike() -> None:
    assert normalise("\uff28ello\u00a0 WORLD\n\ufb01n ") == normalise("hello world fin")
    assert normalise("straße") == normalise("STRASSE")
