"""A data set of the size of the PKU-SafeRLHF release through check, stats, split and export.

    python benchmarks/release_size.py                   265k exchanges and 167k pairs, as the release has
    python benchmarks/release_size.py --scale 0.05      a twentieth of it, to see that it works

The rows are our own: made-up words in texts as long as those of the release (23 words of a prompt and 75
of a response in the median), about as many rows per prompt, labels drawn at its rates and without
contradictions. Every step is the command that a user types, in a process of its own with one thread; its
seconds and its peak memory are those that the operating system counts. On a machine that does other work
as well, the processor seconds say what the wall clock would show if it did not.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from equipoise.data.io import write_records
from equipoise.progress import track
from equipoise.records import Answer, Exchange, Pair
from equipoise.taxonomy import load_taxonomy

EXCHANGES, PAIRS, PROMPTS, SEED = 265_000, 166_800, 44_600, 0
SECONDS, MIB = 600, 2048
"""What all steps may take together, and each at its peak."""

NAMES = load_taxonomy("pku19").names
LICENCE = {"source": "made-up", "licence": "CC0-1.0", "label_origin": "drawn"}


class Texts:
    """Made-up prompts and responses."""

    def __init__(self, prompts: int) -> None:
        """Draw the words and the prompts."""
        self.rng = np.random.default_rng(SEED)
        syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
        pick = random.Random(SEED)
        words = {"".join(pick.choices(syllables, k=pick.randint(1, 5))) for _ in range(30_000)}
        self.words = np.array(sorted(words))
        self.prompts = [f"{self.text(23).capitalize()}?" for _ in range(prompts)]

    def text(self, words: int) -> str:
        """Return a text whose length is log-normal around a number of words."""
        length = int(np.clip(words * self.rng.lognormal(0, 0.5), 2, 600))
        return " ".join(self.words[(len(self.words) * self.rng.random(length) ** 3).astype(int)])

    def answer(self) -> Answer:
        """Return a response with labels that agree, a little more than half of them unsafe."""
        response = f"{self.text(75).capitalize()}."
        if self.rng.random() < 0.485:
            return Answer(response=response, is_safe=True, severity=0, categories=frozenset())
        categories = frozenset(self.rng.choice(NAMES, 1 + self.rng.binomial(4, 0.25)).tolist())
        severity = int(self.rng.choice([1, 2, 3], p=[0.12, 0.74, 0.14]))
        return Answer(response=response, is_safe=False, severity=severity, categories=categories)

    def exchanges(self, count: int) -> Iterator[Exchange]:
        """Yield exchanges."""
        for n in track(range(count), "writing exchanges"):
            labels = self.answer().model_dump()
            yield Exchange(id=f"e{n}", prompt=self.prompts[n % len(self.prompts)], **LICENCE, **labels)

    def pairs(self, count: int) -> Iterator[Pair]:
        """Yield pairs; `better` does not look at harm, `safer` ranks safe above unsafe."""
        for n in track(range(count), "writing pairs"):
            answers = (self.answer(), self.answer())
            better, safer = self.rng.integers(2, size=2).tolist()
            if answers[0].is_safe != answers[1].is_safe:
                safer = 0 if answers[0].is_safe else 1
            prompt = self.prompts[n % len(self.prompts)]
            provenance = {"response_0_source": "a", "response_1_source": "b"}
            yield Pair(
                id=f"p{n}",
                prompt=prompt,
                answers=answers,
                better=better,
                safer=safer,
                provenance=provenance,
                **LICENCE,
            )


def measured(arguments: list[str]) -> dict[str, Any]:
    """Run a command in a process of its own; return seconds, processor seconds and peak MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "equipoise", *arguments],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"error: equipoise {' '.join(arguments)}: failed")
    seconds = time.perf_counter() - start
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": usage.ru_maxrss // 1024,
    }


def main() -> int:
    """Write the files, run the steps, print what each took; exit code 1 if the limits are not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the release's size")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    counts = {name: int(arguments.scale * n) for name, n in (("exchanges", EXCHANGES), ("pairs", PAIRS))}
    steps: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [folder / f"{kind}.jsonl" for kind in counts]
        texts = Texts(max(1, int(arguments.scale * PROMPTS)))
        write_records(files[0], texts.exchanges(counts["exchanges"]))
        write_records(files[1], texts.pairs(counts["pairs"]))
        size = sum(file.stat().st_size for file in files) // 2**20
        both, out = [str(file) for file in files], [str(folder / f"out{n}") for n in range(4)]
        commands = {
            "check": ["data", "check", *both],
            "stats": ["data", "stats", *both, "--out", out[0]],
            "split": ["data", "split", *both, "--out", out[1]],
            "export pku-qa": ["data", "export", both[0], "--to", "pku-qa", "--out", out[2]],
            "export pku-dual": ["data", "export", both[1], "--to", "pku-dual", "--out", out[3]],
        }
        for step, command in commands.items():
            steps[step] = measured(command)
            print(json.dumps({step: steps[step]}), flush=True)
    total = {
        name: round(sum(took[name] for took in steps.values()), 1) for name in ("seconds", "cpu_seconds")
    }
    total["peak_mib"] = max(took["peak_mib"] for took in steps.values())
    result = {"rows": counts, "mib_of_files": size, "steps": steps, **total}
    print(json.dumps(total | {"mib_of_files": size}))
    if not arguments.no_save:
        save("release_size", result | {"limits": {"seconds": SECONDS, "peak_mib": MIB}})
    return int(total["seconds"] > SECONDS or total["peak_mib"] > MIB)


if __name__ == "__main__":
    sys.exit(main())
