"""`train group-lag` beside TRL's GRPOTrainer with a multiplier as a callback: responses per processor second.

    python benchmarks/online.py             3 updates of 8 prompts, 4 responses each, at most 48 tokens
    python benchmarks/online.py --equal     one batch of rollouts on the same weights, not timed

Needs TRL 1.16. Both learn an adapter on the same weights in 32 bits, from the same built-in prompts, with the
same reward and cost, which take no time, so that writing and learning are what is measured; `online_sides.py`
says what else they are told. Responses differ, since the random numbers do; their real tokens are told. Timed
is from the first token embedded to the last optimiser step: loading and saving count for nobody.

Peers: TRL that learns from batches of 8 responses, its own size, from a whole rollout at once, and from one
that transformers' continuous batches wrote. All write a rollout at once.

`--equal` draws one batch of rollouts with one state of the adapter, moves both sides to another, so that the
ratio is not 1, some of it out of bounds and the divergence not 0, and compares the loss and the gradients of
the step. TRL is given ids, rewards and costs, and does all that follows by itself.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from online_sides import LOSSES, FirstStep, by_trl, our_config, ours, prepared, weights_of
from race import gradient_difference, keep, spread
from side_rows import Job
from sides import Mark, Training, child, in_turns, measure, write_job
from torch import Tensor, nn

from equipoise.data.corpus import corpus_path
from equipoise.data.io import read_records, write_records
from equipoise.models.builtin import resolve
from equipoise.models.roles_load import load_roles
from equipoise.policy.credit import credit
from equipoise.policy.experience import Experience, collect
from equipoise.policy.lagrangian import Multiplier
from equipoise.policy.scoring import load_scoring
from equipoise.policy.update import Learner
from equipoise.records import Prompt

OURS, PEER, WHOLE, CONTINUOUS = "equipoise", "trl", "trl, whole rollouts", "trl, continuous batches"
SIDES = (OURS, PEER, WHOLE, CONTINUOUS)
BATCH = 8
"""Responses at a time of TRL's own settings."""
STILL = {"updates": 1, "epochs": 2, "clip": 1e9, "lr": 1e-20, "beta": 1.0}
"""One update of two steps, since the ratio of a single one is 1; only the first is looked at. The divergence
weighs as much as the advantages, whose own part of the loss is nearly 0: they are 0 in the mean."""


def training_of(side: str, job: Job) -> Training:
    if side == OURS:
        return ours(job)
    responses = job["prompts"] * job["samples"]
    batch = math.gcd(BATCH, responses) if side == PEER else responses
    return by_trl(job, batch=batch, continuous=side == CONTINUOUS)


def whole(run: Mapping[str, Any]) -> Mark:
    """What all updates took."""
    before, during = Mark(*run["before"]), Mark(*run["during"])
    return Mark(before.wall + during.wall, before.cpu + during.cpu)


def told(runs: Sequence[Mapping[str, Any]], responses: int) -> dict[str, Any]:
    """One side: its rates over all updates, how much of it is writing, memory, and what it has seen."""
    took = [whole(run) for run in runs]
    tokens = [sum(run["lengths"]) for run in runs]
    return {
        "samples_per_cpu_second": spread([responses / one.cpu for one in took], 3),
        "samples_per_second": spread([responses / one.wall for one in took], 3),
        "tokens": spread(tokens, 0),
        "tokens_of_a_response": spread([n / responses for n in tokens], 1),
        "tokens_per_cpu_second": spread([n / one.cpu for n, one in zip(tokens, took, strict=True)], 1),
        "share_of_writing": spread([run["writing"] / one.wall for run, one in zip(runs, took, strict=True)]),
        "own_mib": spread([run["own_mib"] for run in runs], 0),
        **{name: [round(n, 4) for n in runs[-1][name]] for name in ("rewards", "costs", "multipliers")},
    }


def compared(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """How many times each peer's responses per second ours writes and learns from, round by round."""
    found = {}
    for peer in (side for side in runs if side != OURS):
        both = list(zip(runs[OURS], runs[peer], strict=True))
        tokens = [sum(a["lengths"]) / sum(b["lengths"]) for a, b in both]
        times = [whole(b).cpu / whole(a).cpu for a, b in both]
        found[peer] = {
            "times_per_cpu_second": spread(times),
            "times_on_the_wall": spread([whole(b).wall / whole(a).wall for a, b in both]),
            "times_per_cpu_second_in_tokens": spread([n * t for n, t in zip(tokens, times, strict=True)]),
            "memory": spread([a["own_mib"] / b["own_mib"] for a, b in both]),
        }
    return found


def job_of(args: argparse.Namespace, folder: Path) -> Job:
    """What every side is told, with the prompts in a folder that is removed at the end."""
    prompts = list(read_records(corpus_path("prompts"), Prompt))
    count = args.updates * args.prompts
    if count > len(prompts):
        raise SystemExit(f"--updates, --prompts: got {count} prompts; there are {len(prompts)}")
    write_records(folder / "prompts.jsonl", prompts[:count])
    names = ("updates", "prompts", "samples", "rank", "beta", "tokens")
    return {
        "model": str(resolve(args.model)),
        "prompts_file": str(folder / "prompts.jsonl"),
        "max_new_tokens": args.new,
        "mean_over": args.mean_over,
        "epochs": 1,
        "lr": 1e-4,
        "clip": 1.0,
        "seed": 0,
        **{name: getattr(args, name) for name in names},
    }


def about(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    """What was trained, and how."""
    names = ("updates", "prompts", "samples", "max_new_tokens", "rank", "beta", "lr", "clip", "tokens")
    settings = {name: job[name] for name in names} | {"mean_over": job["mean_over"], "kl": "k3"}
    return {"model": args.model, "texts": corpus_path("prompts").name, "settings": settings}


def timed(args: argparse.Namespace, folder: Path) -> None:
    """Time all sides in turns."""
    job = job_of(args, folder)

    def run(side: str) -> Any:
        path = write_job(job, folder)
        took = child(__file__, side, path)
        return took | json.loads((path.parent / "told.json").read_text("utf-8"))

    runs = in_turns(args.sides, args.rounds, run)
    responses = args.updates * args.prompts * args.samples
    result = {**about(args, job), "rounds": args.rounds, "responses": responses}
    result["sides"] = {side: told(found, responses) for side, found in runs.items()}
    result["compared"] = compared(runs) if OURS in runs else {}
    if not args.no_save:
        keep("online", "timed", result)
    print(json.dumps({name: result[name] for name in ("sides", "compared")}, indent=1))


def put(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Set weights to values."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def states(parameters: Sequence[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Two states of an adapter that lie near each other: one that draws, and one that learns."""
    source = torch.Generator().manual_seed(0)
    drawing = [0.02 * torch.randn(p.shape, generator=source) for p in parameters]
    return drawing, [one + 0.012 * torch.randn(one.shape, generator=source) for one in drawing]


class Batch(NamedTuple):
    """What both sides learn from."""

    experience: Experience
    multiplier: float


def our_step(job: Job) -> tuple[FirstStep, Batch, float]:
    """Draw rollouts, and take our step of them; also the share of tokens that were clipped."""
    config = our_config(job)
    roles = load_roles(config.roles, (), seed=config.seed)
    learner = Learner(roles, config)
    drawing, learning = states(learner.actor)
    put(learner.actor, drawing)
    scoring = load_scoring(config.scoring, roles, config.signals[1:])
    prompts = list(read_records(Path(job["prompts_file"]), Prompt))
    experience = collect(config, roles, scoring, prompts, 0)
    multiplier = Multiplier(config.constraints, config.multiplier)
    multiplier.start(experience.signals.costs)
    multiplier.update(experience.signals.costs)
    put(learner.actor, learning)
    with FirstStep() as step:
        found = credit(config, experience, multiplier.values, multiplier.budgets)
        learned = learner.learn(experience, found, 0)
    return step, Batch(experience, multiplier.values[0]), learned.clip_fraction


def their_step(job: Job, batch: Batch) -> tuple[FirstStep, dict[str, float]]:
    """Take TRL's step of the same rollouts; also what it logs.

    It asks for rewards when it has read what drew and the reference, and before it learns: that is where its
    weights are moved.
    """
    rollouts, scores = batch.experience.rollouts, batch.experience.scores.T.tolist()

    def rewards(**_: Any) -> list[float]:
        put(parameters, learning)
        return list(scores[0])

    def costs(**_: Any) -> list[float]:
        return list(scores[1])

    def written(*_: Any) -> dict[str, Any]:
        ids = {"prompt_ids": [r.prompt_ids for r in rollouts], "completion_ids": [r.ids for r in rollouts]}
        return {**ids, "logprobs": None}

    make = prepared(job, batch=math.gcd(BATCH, len(rollouts)))
    trainer = make(weights_of(batch.multiplier), [rewards, costs], rollout_func=written)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    drawing, learning = states(parameters)
    put(parameters, drawing)
    with FirstStep() as step:
        trainer.train()
    return step, trainer.state.log_history[0]


def differences(job: Job) -> dict[str, Any]:
    """Both sides' step of one batch, in numbers."""
    mine, batch, clipped = our_step(job)
    their, logged = their_step(job, batch)
    norms = [math.sqrt(math.fsum(float(g.square().sum()) for g in s.gradients)) for s in (mine, their)]
    apart = abs(mine.loss - their.loss)
    return {
        "loss": {OURS: mine.loss, PEER: their.loss, "difference": apart, "relative": apart / abs(their.loss)},
        "gradient_norm": {OURS: norms[0], PEER: norms[1], "relative": abs(norms[0] - norms[1]) / norms[1]},
        "gradient": gradient_difference(mine.gradients, their.gradients),
        "clipped": {OURS: clipped, PEER: logged["clip_ratio/region_mean"]},
        "kl": logged["kl"],
        "multiplier": batch.multiplier,
    }


def equal(args: argparse.Namespace, folder: Path) -> None:
    """Compare losses and gradients of one batch, as means over tokens and over responses."""
    jobs = {name: {**job_of(args, folder), **STILL, "mean_over": name} for name in LOSSES}
    found = {name: differences({**job, "folder": str(folder / name)}) for name, job in jobs.items()}
    result = {**about(args, jobs["tokens"]), "mean_over": found}
    if not args.no_save:
        keep("online", "equality", result)
    print(json.dumps(found, indent=1))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="built-in name or folder")
    parser.add_argument("--updates", type=int, default=3, help="rollouts, each with one step")
    parser.add_argument("--prompts", type=int, default=8, help="of a rollout")
    parser.add_argument("--samples", type=int, default=4, help="responses to a prompt")
    parser.add_argument("--new", type=int, default=48, help="tokens of a response at most")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--beta", type=float, default=0.05, help="weight of the divergence")
    parser.add_argument("--mean-over", choices=list(LOSSES), default="tokens", help="of a step's loss")
    parser.add_argument("--tokens", type=int, default=512, help="our tokens_per_micro_batch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--equal", action="store_true", help="compare loss and gradients instead of times")
    parser.add_argument("--no-save", action="store_true", help="do not write the result file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    args = arguments().parse_args()
    if args.side:
        job = json.loads(args.job.read_text("utf-8"))
        measure(training_of(args.side, job))
        return
    with tempfile.TemporaryDirectory() as folder:
        (equal if args.equal else timed)(args, Path(folder))


if __name__ == "__main__":
    main()
