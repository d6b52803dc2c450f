"""Tokens per second of rollouts, against `model.generate` on padded batches of 8 with the same weights.

    python benchmarks/rollout.py                          64 prompts x 4 samples, at most 128 tokens
    python benchmarks/rollout.py --prompts 8 --new 16     smaller

Both sample with temperature 1 from the built-in prompts, and stop at the model's own ends of a sequence or
turn. Only real tokens count: those of a response, and the one that ended it. Each side runs in a process of
its own, in turns, and each round begins with the other one; loading, and a first small rollout, do not
count. The draws differ, since the random numbers do; lengths are told. A second peer has batches of 32.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from common import save

from equipoise.data.corpus import corpus_path
from equipoise.generation.local import LocalGenerator, load_generator
from equipoise.generation.rollouts import roll_out
from equipoise.protocols import Sampling
from equipoise.records import Prompt, messages_of

OURS, PEER, WIDE = "equipoise", "generate, batches of 8", "generate, batches of 32"
SIDES = (OURS, PEER, WIDE)

Write = Callable[[Sequence[Prompt], Sampling], list[int]]
"""Writes all responses; returns their lengths in tokens."""


def prompts(count: int) -> list[Prompt]:
    """The first built-in prompts."""
    lines = corpus_path("prompts").read_text("utf-8").splitlines()[:count]
    return [Prompt.model_validate_json(line) for line in lines]


def our_writer(generator: LocalGenerator) -> Write:
    """Rollouts as a training asks for them, log-probabilities included."""

    def write(asked: Sequence[Prompt], sampling: Sampling) -> list[int]:
        return [len(r.ids) for many in roll_out(generator, asked, sampling) for r in many]

    return write


def peer_writer(generator: LocalGenerator, batch: int) -> Write:
    """`generate` on padded batches of `batch` responses, in the order of the prompts."""
    model: Any = generator.model
    stops = sorted(generator.stop_ids)
    pad = generator.tokenizer.pad_token_id

    def write(asked: Sequence[Prompt], sampling: Sampling) -> list[int]:
        torch.manual_seed(sampling.seed)
        rows = [generator.encode(messages_of(p.prompt), sampling) for p in asked]
        rows = [ids for ids in rows for _ in range(sampling.samples)]
        lengths = []
        for start in range(0, len(rows), batch):
            group = rows[start : start + batch]
            width = max(map(len, group))
            out = model.generate(
                torch.tensor([[pad] * (width - len(ids)) + ids for ids in group]),
                attention_mask=torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in group]),
                max_new_tokens=sampling.max_new_tokens,
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                eos_token_id=stops,
                pad_token_id=pad,
            )
            for response in out[:, width:].tolist():
                end = next((i + 1 for i, token in enumerate(response) if token in stops), len(response))
                lengths.append(end)
        return lengths

    return write


def run_side(side: str, args: argparse.Namespace) -> None:
    """Write in this process, and print what it took."""
    generator = load_generator(args.model, batch_size=args.batch, dtype="float32", device="cpu")
    batches = {PEER: 8, WIDE: 32}
    write = our_writer(generator) if side == OURS else peer_writer(generator, batches[side])
    asked = prompts(args.prompts)
    sampling = Sampling(args.new, temperature=1.0, samples=args.samples, seed=args.seed)
    write(asked[:2], sampling._replace(max_new_tokens=4))  # what is slow only once
    start, used = time.perf_counter(), time.process_time()
    lengths = write(asked, sampling)
    wall, cpu = time.perf_counter() - start, time.process_time() - used
    print(json.dumps({"wall": wall, "cpu": cpu, "lengths": lengths}))


def child(side: str, seed: int, argv: Sequence[str]) -> dict[str, Any]:
    """Run one side in a process of its own; return what it printed last."""
    done = subprocess.run(
        [sys.executable, __file__, *argv, "--side", side, "--seed", str(seed)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{side}: failed\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def told(runs: list[dict[str, Any]], peers: list[dict[str, Any]], new: int) -> dict[str, Any]:
    """Tokens per second, and how many times the peer's, each round by itself."""
    rates = [sum(run["lengths"]) / run["wall"] for run in runs]
    ratios = [r / (sum(p["lengths"]) / p["wall"]) for r, p in zip(rates, peers, strict=True)]
    lengths = [length for run in runs for length in run["lengths"]]
    return {
        "tokens_per_second": round(float(np.median(rates)), 1),
        "cpu_ms_per_token": round(
            float(np.median([1000 * run["cpu"] / sum(run["lengths"]) for run in runs])), 2
        ),
        "times_generate": round(float(np.median(ratios)), 2),
        "times_generate_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "mean_length": round(float(np.mean(lengths)), 1),
        "at_limit": round(float(np.mean([length == new for length in lengths])), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new", type=int, default=128, help="tokens of a response at most")
    parser.add_argument("--batch", type=int, default=32, help="our responses at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--no-save", action="store_true", help="do not write the result file")
    args = parser.parse_args()
    if args.side:
        run_side(args.side, args)
        return
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(args.rounds):
        shift = number % len(SIDES)
        for side in [*SIDES[shift:], *SIDES[:shift]]:
            runs[side].append(child(side, args.seed + number, sys.argv[1:]))
            print(f"round {number + 1}, {side}: {runs[side][-1]['wall']:.1f} s", file=sys.stderr, flush=True)
    result = {
        "model": args.model,
        "prompts": args.prompts,
        "samples": args.samples,
        "new_tokens": args.new,
        "our_batch": args.batch,
        "rounds": args.rounds,
        "torch_threads": torch.get_num_threads(),
        "sides": {side: told(runs[side], runs[PEER], args.new) for side in SIDES},
    }
    if not args.no_save:
        save("rollout", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
