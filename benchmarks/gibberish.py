"""What the gibberish filters find, and what they cost: real texts against the same with tokens shuffled.

    python benchmarks/gibberish.py --data DIR         every .jsonl of DIR, prompts and responses

A fake is a real text whose tokens (those of the language model) were shuffled and decoded again. Texts
have at least 8 words. Each filter is reported with the threshold that it is shipped with, which was set
on texts of these same files and so is a little flattered, and as `held_out` with one set on other real
texts of DIR so that it drops 2 % of them.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from equipoise.curation.gibberish import (
    MIN_WORDS,
    THRESHOLDS,
    TOKENS,
    Jumbled,
    Repetitive,
    association,
    threshold_for,
)
from equipoise.generation.likelihood import load_likelihood
from equipoise.stats import auroc

MODEL = "smollm2-135m"
FIELDS = ("prompt", "response", "response_0", "response_1")
DROPPED = 0.02


def real_texts(folder: Path) -> Iterator[str]:
    """Every text of a few words, once."""
    seen: set[str] = set()
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            for text in (row.get(field) for field in FIELDS):
                if isinstance(text, str) and len(text.split()) >= MIN_WORDS and text not in seen:
                    seen.add(text)
                    yield text


def rates(name: str, real: list[float], fake: list[float], held_out: list[float], shipped: float) -> Any:
    """Share of fakes and of real texts that fall under a threshold."""
    print(f"{name}: {len(real)} real, {len(fake)} fake")
    ranks = np.array(real + fake), np.array([True] * len(real) + [False] * len(fake))
    found: dict[str, Any] = {"auroc": round(float(auroc(*ranks)), 4)}
    for label, threshold in (("shipped", shipped), ("held_out", threshold_for(held_out, DROPPED))):
        found[label] = {
            "threshold": round(threshold, 3),
            "fakes_dropped": round(float(np.mean(np.array(fake) < threshold)), 4),
            "real_dropped": round(float(np.mean(np.array(real) < threshold)), 4),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of .jsonl files")
    parser.add_argument("--texts", type=int, default=1000, help="real texts that are measured")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    texts = list(real_texts(arguments.data))
    rng.shuffle(texts)
    real, held_out = texts[: arguments.texts], texts[arguments.texts : 2 * arguments.texts]
    likelihood = load_likelihood(MODEL, max_tokens=TOKENS)
    fake = []
    for text in real:
        ids = likelihood.tokenizer(text, add_special_tokens=False)["input_ids"]
        rng.shuffle(ids)
        fake.append(likelihood.tokenizer.decode(ids))
    start = time.perf_counter()
    values = likelihood(real), likelihood(fake), likelihood(held_out)
    seconds = (time.perf_counter() - start) / (3 * arguments.texts)
    with_model = rates(MODEL, *values, shipped=THRESHOLDS[MODEL])
    plain = [[association(text) for text in group] for group in (real, fake, held_out)]
    result = {
        "texts": len(real),
        "seed": arguments.seed,
        MODEL: {**with_model, "tokens": TOKENS, "seconds_per_text": round(seconds, 4)},
        "without_model": rates("without a model", *plain, shipped=Jumbled().threshold),
        "repetitive": {"real_dropped": round(sum(map(bool, map(Repetitive(), real))) / len(real), 4)},
    }
    save("gibberish", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
