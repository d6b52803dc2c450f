"""Near-duplicate removal against a loop over datasketch and against rensa: time, memory, what is found.

    python benchmarks/dedup.py                              50k, 200k and 1M rows
    python benchmarks/dedup.py --sizes 2000 5000            quickly, to see that it works
    python benchmarks/dedup.py --peer-limit 200000          the largest size that the peers get

The texts are our own: words made of syllables, drawn with Zipf's law. A tenth of the rows are copies of
others with one to three words changed, dropped or swapped; a fiftieth are the same but for case and
spaces. Everyone gets the same rows, shingles (five characters of the normalised text), permutations and
threshold, and runs in a process of its own, one after the other, with one thread. Time and memory are
from texts in memory to the list of rows to drop; memory is the peak less what the process holds with
its imports done and the texts loaded.

A planted copy counts as one to be found if its Jaccard index with its original is at or above the
threshold. Precision is on a sample of the dropped rows: is the exact index of each and the row that it
is said to be a copy of at or above the threshold? (A row at the end of a chain of copies is not.)
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from equipoise.curation.dedup import Similarity, near_copies
from equipoise.curation.minhash import normalise

THRESHOLD, PERMUTATIONS, SHINGLE, SEED = 0.8, 128, 5, 0
VOCABULARY = 60_000
CHECKED = 1000
"""Dropped rows whose similarity is checked."""

Dropped = list[tuple[int, int]]
"""(row that is dropped, row that it is a copy of)."""


def vocabulary(rng: random.Random) -> list[str]:
    """Made-up words; the frequent ones are short."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words: dict[str, None] = {}
    while len(words) < VOCABULARY:
        longest = 2 + (len(words) > 5_000) + (len(words) > 40_000)
        words["".join(rng.choices(syllables, k=rng.randint(1, longest)))] = None
    return list(words)


def make(rows: int, path: Path) -> None:
    """Write the texts and, for each, the row that it was made from, or its own."""
    rng, numbers = random.Random(SEED), np.random.default_rng(SEED)
    words = vocabulary(rng)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    weights /= weights.sum()
    lengths = numbers.integers(12, 80, rows)
    drawn = iter(numbers.choice(VOCABULARY, lengths.sum(), p=weights).tolist())
    with path.open("w", encoding="utf-8") as out:
        kept: list[tuple[int, list[str]]] = []  # some rows to copy from
        for row, length in enumerate(lengths.tolist()):
            own = [words[next(drawn)] for _ in range(length)]
            kind, origin = rng.random(), row
            if kind < 0.12 and kept:
                origin, parts = kept[rng.randrange(len(kept))]
                own = changed(parts, words, rng) if kind < 0.1 else disguised(parts, rng)
            elif len(kept) < 20_000 or rng.random() < 0.1:
                kept.append((row, own))
                del kept[: len(kept) - 20_000]
            out.write(json.dumps([" ".join(own), origin]) + "\n")


def changed(parts: Sequence[str], words: Sequence[str], rng: random.Random) -> list[str]:
    """Change, drop or swap one to three words."""
    own = list(parts)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(own) - 1)
        match rng.randrange(3):
            case 0:
                own[place] = rng.choice(words)
            case 1:
                del own[place]
            case _:
                own[place], own[place + 1] = own[place + 1], own[place]
    return own


def disguised(parts: Sequence[str], rng: random.Random) -> list[str]:
    """Change case and spaces only."""
    return [" " * rng.randrange(2) + (part.upper() if rng.random() < 0.2 else part) for part in parts]


def slices(text: str) -> list[str]:
    """Shingles of a normalised text, as every peer takes them."""
    padded = text + "\0" * (SHINGLE - 1)
    return [padded[i : i + SHINGLE] for i in range(len(text))]


def ours(texts: list[str]) -> Dropped:
    settings = Similarity(threshold=THRESHOLD, size=SHINGLE, num_perm=PERMUTATIONS, seed=SEED)
    return [(copy.row, copy.of) for copy in near_copies(texts, settings).copies]


def by_datasketch(texts: list[str]) -> Dropped:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
    blank = MinHash(num_perm=PERMUTATIONS, seed=SEED)
    dropped = []
    for row, text in enumerate(texts):
        sketch = blank.copy()
        sketch.update_batch([s.encode() for s in set(slices(normalise(text)))])
        found = index.query(sketch)
        if found:
            dropped.append((row, min(found)))
        index.insert(row, sketch, check_duplication=False)
    return dropped


def by_rensa(texts: list[str]) -> Dropped:
    from rensa import RMinHash, RMinHashDeduplicator

    index = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=PERMUTATIONS, use_lsh=True, seed=SEED)
    dropped = []
    for first in range(0, len(texts), 1000):
        shingles = [slices(normalise(text)) for text in texts[first : first + 1000]]
        sketches = RMinHash.from_token_sets(shingles, PERMUTATIONS, SEED)
        for row, sketch in enumerate(sketches, start=first):
            if not index.add(str(row), sketch):
                dropped.append((row, min(map(int, index.get_duplicates(sketch)))))
    return dropped


METHODS: dict[str, Callable[[list[str]], Dropped]] = {
    "equipoise": ours,
    "datasketch": by_datasketch,
    "rensa": by_rensa,
}


def measure(name: str, path: Path) -> None:
    """Run one method in this process and print what it took and found."""
    method = METHODS[name]
    method(["warm up", "the imports"])
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts, origins = [text for text, _ in rows], [origin for _, origin in rows]
    del rows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    dropped = method(texts)
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {name: round(value, 2) for name, value in took.items()}
    result |= {"peak_mib": peak // 1024, "own_mib": (peak - before) // 1024, "dropped": len(dropped)}
    print(json.dumps(result | found(texts, origins, dropped)))


def found(texts: list[str], origins: list[int], dropped: Dropped) -> dict[str, float]:
    """Recall of the planted copies, and precision on a sample of what was dropped."""
    rows = {row for row, _ in dropped}
    planted = [row for row, origin in enumerate(origins) if origin != row]
    planted = sorted(random.Random(1).sample(planted, min(len(planted), 20_000)))
    near = [row for row in planted if jaccard(texts[row], texts[origins[row]]) >= THRESHOLD]
    sample = random.Random(2).sample(dropped, min(len(dropped), CHECKED))
    right = [jaccard(texts[row], texts[of]) >= THRESHOLD for row, of in sample]
    return {
        "planted": len(near),
        "recall": round(sum(row in rows for row in near) / max(1, len(near)), 4),
        "checked": len(sample),
        "precision": round(sum(right) / max(1, len(right)), 4),
    }


def jaccard(one: str, other: str) -> float:
    left, right = set(slices(normalise(one))), set(slices(normalise(other)))
    return len(left & right) / len(left | right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 200_000, 1_000_000])
    parser.add_argument("--peer-limit", type=int, default=200_000, help="rows that the peers get at most")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    sizes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.sizes:
            path = Path(folder) / "texts.jsonl"
            make(rows, path)
            names = list(METHODS) if rows <= arguments.peer_limit else ["equipoise"]
            sizes[str(rows)] = {name: run(name, path) for name in names}
            print(json.dumps({rows: sizes[str(rows)]}), flush=True)
    largest = max(rows for rows in arguments.sizes if rows <= max(arguments.peer_limit, arguments.sizes[0]))
    own = [sizes[str(rows)]["equipoise"]["seconds"] / rows for rows in sorted(arguments.sizes)]
    compared = sizes[str(largest)]
    result = {
        "settings": {"threshold": THRESHOLD, "num_perm": PERMUTATIONS, "shingle": SHINGLE, "seed": SEED},
        "rows": sizes,
        "times_as_fast": {
            name: round(compared[name]["seconds"] / compared["equipoise"]["seconds"], 1)
            for name in compared
            if name != "equipoise"
        },
        "compared_at": largest,
        "seconds_per_row_largest_to_smallest": round(own[-1] / own[0], 2),
    }
    save("dedup", result)
    print(json.dumps({name: value for name, value in result.items() if name != "rows"}, indent=1))


def run(name: str, path: Path) -> Any:
    """Measure in a process of its own, with one thread."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, __file__, "--measure", name, str(path)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | threads,
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
