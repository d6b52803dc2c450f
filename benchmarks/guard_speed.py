"""Rows per second of a guard, against a transformers pipeline with the weights of the same encoder.

    python benchmarks/guard_speed.py                     answers of the built-in pairs
    python benchmarks/guard_speed.py --data DIR          answers of DIR/pku_saferlhf_mini.jsonl, in row order

The peer is `pipeline("text-classification")` in fp32 with batches of 32, as its documentation has it: it
tokenizes row by row and pads each batch to its longest row. Its classification head is fresh, so only its
time counts; it reads one window of each answer, where the guard reads all. A second peer gets the rows
sorted by length. Every round times all of them one after the other on the same texts, tokenizing included,
and begins with another one; ratios are taken within a round. The AUROCs are those of P(unsafe).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from common import save
from transformers import AutoModelForSequenceClassification, pipeline

from equipoise.data.corpus import corpus_path
from equipoise.data.io import read_exchanges
from equipoise.models.backbone import quiet
from equipoise.models.guard import load_guard_model
from equipoise.models.windows import MAX_TOKENS, TextPair, encode_windows
from equipoise.moderation.default import NAME, guard_folder
from equipoise.moderation.guard import Guard, Runtime, load_guard
from equipoise.records import text_of
from equipoise.stats import auroc

PEER = "pipeline"
BATCH = 32

Reader = Callable[[list[TextPair]], Any]


class Answer(NamedTuple):
    """An answer in the context of its prompt, and its label."""

    text: TextPair
    is_unsafe: bool


def answers(folder: Path | None, rows: int) -> list[Answer]:
    """The first answers, of the built-in pairs or of a folder's."""
    if folder is None:
        exchanges = read_exchanges((), (corpus_path("pairs"),))
        found = [Answer(TextPair(text_of(e.prompt), e.response), e.is_safe is False) for e in exchanges]
        return found[:rows]
    lines = (folder / "pku_saferlhf_mini.jsonl").read_text("utf-8").splitlines()
    return [
        Answer(TextPair(row["prompt"], row[f"response_{side}"]), not row[f"is_response_{side}_safe"])
        for row in map(json.loads, lines)
        for side in (0, 1)
    ][:rows]


def peers(guard: Path) -> dict[str, Reader]:
    """The pipeline on the guard's own encoder, with the rows as they come and sorted by length."""
    model = load_guard_model(guard, "cpu")
    encoder: Any = model.trunk.encoder
    with quiet():
        classifier = AutoModelForSequenceClassification.from_config(encoder.config, dtype=torch.float32)
        classifier.base_model.load_state_dict(encoder.state_dict())
    pipe = pipeline("text-classification", model=classifier.eval(), tokenizer=model.tokenizer, device="cpu")
    limit = min(MAX_TOKENS, model.tokenizer.model_max_length)

    def read(texts: list[TextPair]) -> Any:
        rows = [{"text": text.prompt, "text_pair": text.response} for text in texts]
        return pipe(rows, batch_size=BATCH, truncation=True, max_length=limit)

    def read_sorted(texts: list[TextPair]) -> Any:
        return read(sorted(texts, key=lambda text: len(text.prompt) + len(text.response or "")))

    return {PEER: read, f"{PEER}, sorted": read_sorted}


class Judged(NamedTuple):
    """What a guard says of each text."""

    unsafe: np.ndarray
    """P(unsafe)."""
    flagged: np.ndarray


def judge(guard: Guard, texts: list[TextPair]) -> Judged:
    """Judge all texts at once."""
    reading = guard.read(texts)
    verdicts = [reading.verdict(row) for row in range(len(texts))]
    return Judged(
        np.array([v.unsafe_probability for v in verdicts]), np.array([not v.is_safe for v in verdicts])
    )


class Taken(NamedTuple):
    """Seconds that a reader took for all rows."""

    wall: float
    processor: float


def times(readers: dict[str, Reader], texts: list[TextPair], rounds: int) -> dict[str, list[Taken]]:
    """What each reader took in each round; every round begins with another reader."""
    taken: dict[str, list[Taken]] = {name: [] for name in readers}
    for read in readers.values():
        read(texts[: 2 * BATCH])  # what is slow only once
    names = list(readers)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start, used = time.perf_counter(), time.process_time()
            readers[name](texts)
            taken[name].append(Taken(time.perf_counter() - start, time.process_time() - used))
    return taken


def speed(taken: list[Taken], peer: list[Taken], rows: int) -> dict[str, Any]:
    """Rows per second, and how many times the peer's, each round by itself."""
    ratios = [theirs.wall / ours.wall for ours, theirs in zip(taken, peer, strict=True)]
    return {
        "rows_per_second": round(rows / float(np.median([one.wall for one in taken])), 1),
        "cpu_ms_per_row": round(1000 * float(np.median([one.processor for one in taken])) / rows, 2),
        "times_pipeline": round(float(np.median(ratios)), 2),
        "times_pipeline_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def measure(guard: Path, rows: list[Answer], rounds: int) -> dict[str, Any]:
    """Times of all readers, and how far the guards' answers are apart."""
    texts, is_unsafe = [row.text for row in rows], [row.is_unsafe for row in rows]
    guards = {name: load_guard(guard, "cpu", name) for name in get_args(Runtime)}
    readers = peers(guard) | {name: loaded.read for name, loaded in guards.items()}
    taken = times(readers, texts, rounds)
    result = {name: speed(found, taken[PEER], len(texts)) for name, found in taken.items()}
    whole, flagged = judge(guards["torch"], texts)
    for name, loaded in guards.items():
        scores, flags = judge(loaded, texts)
        result[name] |= {
            "auroc": round(auroc(scores, is_unsafe), 4),
            "auroc_difference": round(auroc(scores, is_unsafe) - auroc(whole, is_unsafe), 4),
            "largest_difference": round(float(np.abs(scores - whole).max()), 6),
            "flips": int((flags != flagged).sum()),
        }
    windows = [encode_windows(guards["torch"].model.tokenizer, text) for text in texts]
    lengths = [sum(len(window.ids) for window in row) for row in windows]
    return {
        "rows": len(texts),
        "rounds": rounds,
        "torch_threads": torch.get_num_threads(),
        "tokens": {
            "mean": round(float(np.mean(lengths)), 1),
            **{f"p{q}": int(np.percentile(lengths, q)) for q in (5, 50, 95)},
        },
        "runtimes": result,
    }


def arguments(rounds: int) -> argparse.ArgumentParser:
    """What the benchmarks of a guard are told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder of pku_saferlhf_mini.jsonl; else built-in rows")
    parser.add_argument("--guard", type=guard_folder, default=guard_folder(NAME), help="else the shipped one")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def main() -> None:
    args = arguments(rounds=5).parse_args()
    result = measure(args.guard, answers(args.data, args.rows), args.rounds)
    result["texts"] = "pku_saferlhf_mini" if args.data else corpus_path("pairs").name
    save("guard_speed", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
