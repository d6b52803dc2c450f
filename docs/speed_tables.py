"""The tables of the page on speed and memory, from `benchmarks/results/`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

Row = list[str]
HEAD = ["what", "beside", "times as fast", "of its memory"]

TRAININGS = (
    ("preference", "pku", "DPO, all weights, PKU pairs"),
    ("preference", "long", "DPO, all weights, long prompts"),
    ("scorer", "pku", "reward and cost"),
)
PEERS = {
    ("preference", "trl"): "TRL's DPOTrainer, batches of 8",
    ("preference", "trl best"): "TRL at its best here: the reference computed before, batches of 1",
    ("scorer", "trl"): "TRL's RewardTrainer, run twice",
}
TOP = "equipoise top"


def rows_of_speed() -> list[Row]:
    """Every ratio that is measured, in the order of the page."""
    return [*trainings(), *online(), *rollouts(), *roles(), *guard(), *copies()]


def read(name: str) -> dict[str, Any]:
    """A result, empty where there is none yet."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def times(found: dict[str, Any]) -> str:
    """A ratio with the range of its rounds."""
    low, high = found["range"]
    return f"{found['median']:.2f}" + (f" ({low:.2f} to {high:.2f})" if low != high else "")


def trainings() -> Iterator[Row]:
    """Data tokens per processor second, over three epochs with the reference counted once.

    Both sides compute in the same number format. Where ours trains the upper half of the layers, which is
    another training, the peer trains all weights.
    """
    for name, texts, what in TRAININGS:
        for ours, peers in read(name).get(texts, {}).get("compared", {}).items():
            for peer, found in peers.items():
                is_bf16, is_top = ours.endswith("bf16"), ours == TOP
                if is_bf16 != peer.endswith("bf16"):
                    continue
                trained = what.replace("all weights", "upper half of the layers") if is_top else what
                beside = PEERS[name, peer.removesuffix(" bf16")] + (", all weights" if is_top else "")
                yield [
                    trained + (", bf16" if is_bf16 else ""),
                    beside + (", bf16" if is_bf16 else ""),
                    times(found["times_per_cpu_second"]),
                    f"{found['memory']['median']:.2f}",
                ]


def online() -> Iterator[Row]:
    """Responses per processor second, written and learned from."""
    for peer, found in read("online").get("timed", {}).get("compared", {}).items():
        beside = f"GRPOTrainer, the multiplier in a callback ({peer})"
        ratio = times(found["times_per_cpu_second"])
        yield ["GRPO under a constraint, LoRA", beside, ratio, f"{found['memory']['median']:.2f}"]


def rollouts() -> Iterator[Row]:
    """Real tokens per second."""
    sides = read("rollout").get("sides", {})
    for side, found in sides.items():
        if side != "equipoise":
            ours = sides["equipoise"]["tokens_per_second"] / found["tokens_per_second"]
            yield ["rollout of 64 prompts, 4 responses each", f"`{side}`", f"{ours:.2f}", ""]


def roles() -> Iterator[Row]:
    """Peak memory of one step."""
    found = read("roles_memory")
    for peer, key in (("six models, trained whole", "of_six_full"), ("six models with LoRA", "of_six_lora")):
        if key in found:
            yield ["a step of constrained RL", peer, "", f"{found[key]:.2f}"]


def guard() -> Iterator[Row]:
    """Rows per second with the same weights."""
    for name, found in read("guard_speed").get("runtimes", {}).items():
        if not name.startswith("pipeline"):
            low, high = found["times_pipeline_range"]
            ratio = f"{found['times_pipeline']:.2f} ({low:.2f} to {high:.2f})"
            yield [f"the guard, {name}", "transformers' `pipeline`, batches of 32", ratio, ""]


SERVER_HEAD = [
    "runtime",
    "1 client",
    "8 clients",
    "32 clients",
    "answers a second, 32 clients",
    "of a batch's",
]


def rows_of_server() -> list[Row]:
    """Milliseconds until half, and 95 %, of the verdicts were there, and throughput, by runtime."""
    rows = []
    for name, found in read("guard_server").get("runtimes", {}).items():
        clients = found["clients"]
        took = [f"{one['p50_ms']:.0f}, {one['p95_ms']:.0f}" for one in clients.values()]
        busiest = clients["32"]
        share = f"{100 * busiest['share_of_batch']:.0f} %"
        rows.append([f"`{name}`", *took, f"{busiest['rows_per_second']:.0f}", share])
    return rows


def copies() -> Iterator[Row]:
    """Near-copies among 200,000 rows."""
    found = read("dedup").get("rows", {}).get("200000", {})
    for peer in ("datasketch", "rensa"):
        if found:
            ratio = found[peer]["seconds"] / found["equipoise"]["seconds"]
            memory = found["equipoise"]["peak_mib"] / found[peer]["peak_mib"]
            yield ["near-copies among 200,000 rows", peer, f"{ratio:.1f}", f"{memory:.2f}"]
