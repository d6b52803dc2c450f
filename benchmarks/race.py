"""What trainings side by side are told, and how they compare."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine, save
from side_rows import LONGEST, ROWS, Chosen, Job, has_bf16, padded_to, product_rate
from sides import Mark, in_turns
from torch import Tensor

from equipoise.data.corpus import corpus_path
from equipoise.models.builtin import resolve

EPOCHS = 3
"""What the rates are for: so many epochs, with the reference counted once where it is asked beforehand."""


def taken(run: Mapping[str, Any], epochs: int) -> Mark:
    """What all epochs take, given what was measured of some."""
    before, during = Mark(*run["before"]), Mark(*run["during"])
    share = EPOCHS / epochs
    return Mark(before.wall + share * during.wall, before.cpu + share * during.cpu)


def spread(values: Sequence[float], digits: int = 2) -> dict[str, Any]:
    """Median and range over the rounds."""
    numbers = [round(float(v), digits) for v in (np.median(values), min(values), max(values))]
    return {"median": numbers[0], "range": numbers[1:]}


def compared(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], ours: Sequence[str], epochs: int
) -> dict[str, Any]:
    """How many times a peer's data tokens per second of the processor, and which part of its memory."""
    peers = [side for side in runs if side not in ours]
    result: dict[str, Any] = {}
    for side in (side for side in runs if side in ours):
        for peer in peers:
            both = list(zip(runs[side], runs[peer], strict=True))
            result.setdefault(side, {})[peer] = {
                "times_per_cpu_second": spread(
                    [taken(b, epochs).cpu / taken(a, epochs).cpu for a, b in both]
                ),
                "times_on_the_wall": spread([taken(b, epochs).wall / taken(a, epochs).wall for a, b in both]),
                "memory": spread([a["own_mib"] / b["own_mib"] for a, b in both]),
            }
    return result


def told(
    runs: Sequence[Mapping[str, Any]], job: Job, *, tokens: int, flop: float, gflops: Sequence[float]
) -> dict[str, Any]:
    """One side: rates over all epochs, where the time goes, memory, and its last loss."""
    whole = [taken(run, job["epochs"]) for run in runs]
    rate = float(np.median(gflops))
    return {
        "data_tokens_per_cpu_second": spread([EPOCHS * tokens / one.cpu for one in whole], 1),
        "data_tokens_per_second": spread([EPOCHS * tokens / one.wall for one in whole], 1),
        "cpu_seconds_before_the_steps": spread([run["before"][1] for run in runs], 1),
        "cpu_seconds_of_an_epoch": spread([run["during"][1] / job["epochs"] for run in runs], 1),
        "share_of_the_arithmetic_limit": spread([flop / 1e9 / rate / one.wall for one in whole], 3),
        "own_mib": spread([run["own_mib"] for run in runs], 0),
        "steps": runs[0]["steps"],
        "last_loss": round(runs[-1]["losses"][-1], 6),
    }


def race(
    args: argparse.Namespace,
    job: Job,
    chosen: Chosen,
    run: Callable[[str], Any],
    *,
    sides: Sequence[str],
    ours: Sequence[str],
    flop: float,
    less: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Time all sides in turns, and say how they compare.

    Args:
        args: What the script was told.
        job: What every side is told.
        chosen: The rows.
        run: Runs one side.
        sides: All that there are; those in bfloat16 run where the processor has it.
        ours: Which of them are ours.
        flop: Floating-point operations that all epochs need.
        less: Of sides that need fewer, how many.
    """
    sides = args.sides or [side for side in sides if has_bf16() or not side.endswith("bf16")]
    gflops: dict[str, list[float]] = {"float32": [], "bfloat16": []}

    def timed(side: str) -> Any:
        if side == sides[0]:  # once a round
            for name, rates in gflops.items():
                rates.append(product_rate(getattr(torch, name)))
        return run(side)

    runs = in_turns(sides, args.rounds, timed)
    tokens = sum(row.length for row in chosen.rows)
    found = {}
    for side in sides:
        rates = gflops["bfloat16" if side.endswith("bf16") else "float32"]
        needed = (less or {}).get(side, flop)
        found[side] = told(runs[side], job, tokens=tokens, flop=needed, gflops=rates)
        if needed != flop:
            found[side]["needed_gflop"] = round(needed / 1e9, 1)
        if side not in ours:
            batch = 1 if "best" in side else job["batch"]
            found[side]["computed_tokens_of_an_epoch"] = padded_to(chosen.rows, batch)
        elif "frozen" not in side:
            found[side]["computed_tokens_of_an_epoch"] = chosen.computed
    return {
        **about(args, job, chosen),
        "rounds": args.rounds,
        "epochs": {"measured": args.epochs, "rates_are_for": EPOCHS},
        "product_gflop_per_second": {name: [round(r, 1) for r in rates] for name, rates in gflops.items()},
        "needed_gflop": round(flop / 1e9, 1),
        "sides": found,
        "compared": compared(runs, ours, args.epochs),
    }


def about(args: argparse.Namespace, job: Job, chosen: Chosen) -> dict[str, Any]:
    """What was trained on what."""
    return {
        "texts": ROWS[args.rows] if args.data else corpus_path("pairs").name,
        "model": args.model,
        "pairs": len(chosen.rows),
        "data_tokens_of_an_epoch": sum(row.length for row in chosen.rows),
        "prompt_tokens_of_an_epoch": sum(len(row.prompt) for row in chosen.rows),
        "settings": {name: job[name] for name in ("batch", "lr", "clip", "tokens")},
    }


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference of two curves, relative to the second."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def gradient_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> dict[str, float]:
    """Norm of the difference of all gradients, and of the worst tensor, relative to the second's."""
    pairs = list(zip(ours, theirs, strict=True))
    apart = [float((a - b).norm()) for a, b in pairs]
    norms = [float(b.norm()) for _, b in pairs]
    each = [d / n if n else float(d > 0) for d, n in zip(apart, norms, strict=True)]
    whole = float(np.linalg.norm(apart) / np.linalg.norm(norms))
    return {"all": whole, "worst_tensor": max(each)}


def arguments(about: str, sides: Sequence[str]) -> argparse.ArgumentParser:
    """What the benchmarks of trainings are told."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, help="folder of the rows; else built-in pairs")
    parser.add_argument("--rows", choices=list(ROWS), default="pku", help="which rows of the folder")
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or folder")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8, help="pairs of an optimiser step")
    parser.add_argument("--epochs", type=int, default=1, help=f"measured ones; the rates are for {EPOCHS}")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512, help="our tokens_per_micro_batch")
    parser.add_argument("--sides", nargs="+", choices=list(sides), help="all that run here unless given")
    parser.add_argument("--side", choices=list(sides), help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser


def job_of(args: argparse.Namespace, folder: Path) -> Job:
    """What a side is told, with places in a folder that is removed at the end."""
    names = ("batch", "epochs", "tokens")
    return {
        "model": str(resolve(args.model)),
        "pairs": str(folder / "pairs.jsonl"),
        "texts": str(folder / "texts.jsonl"),
        "longest": 2 * LONGEST,
        "lr": 1e-6,
        "clip": 1.0,
        "seed": 0,
        **{name: getattr(args, name) for name in names},
    }


def keep(name: str, part: str, result: Mapping[str, Any]) -> None:
    """Write one part of `results/NAME.json` and leave the others as they are."""
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    before.pop("machine", None)
    own = {**machine(), "trl": metadata.version("trl"), "bf16_in_hardware": has_bf16()}
    save(name, {**before, part: {"machine": own, **result}})
