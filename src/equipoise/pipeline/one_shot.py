"""Pairs of a policy that keeps a budget, from scored responses: MoCAN, PeCAN, a round of constrained DPO.

Responses of the reference with reward and cost give the multiplier (`objectives/constraints.py`), and
pseudo-preferences drawn from r - k c are pairs that plain DPO learns from: its policy is then the one that
is best under the budget. Huang et al. 2024. In: rows of `score` over a file of `generate -k`, several
responses to each prompt. Out: pairs with `overall`, for `train preference --set preference=overall
objective=dpo` with the same beta. With `ascend` the multiplier is that of earlier pairs, moved by what the
policy that learned from them costs: constrained DPO, Liu et al. 2024.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, JsonValue, model_validator
from torch import Tensor

from equipoise.config import Config, InputPath, IsLater
from equipoise.data.io import parse_record, read_records, write_records
from equipoise.data.rows import Row, read_rows
from equipoise.errors import DataError
from equipoise.lineage import Run, Step
from equipoise.objectives.constraints import (
    State,
    ascend,
    draw_preferences,
    lagrangian,
    solve_dual,
    tilted_mean,
)
from equipoise.records import Answer, Pair, Prompt


class AscendSettings(Config):
    """Where the multiplier goes on from, and what it answers to."""

    before: InputPath
    """Pairs that `one-shot` made before."""
    scored: InputPath
    """Rows of `score` over responses of the policy that learned from them."""
    lr: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """By how much the multiplier rises for each unit of cost over the budget."""


class OneShotConfig(Config):
    """Settings of `one-shot`."""

    scored: InputPath
    """Rows of `score`: a prompt's fields with response, reward and cost; at least two of each prompt."""
    budget: float = 0.0
    """Mean cost that the policy may have, in units of the cost."""
    beta: float = Field(default=0.1, gt=0)
    """Weight of the divergence from the reference, as the training after it has."""
    multiplier: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Takes the place of the one that keeps the budget."""
    ascend: Annotated[AscendSettings | None, IsLater()] = None
    """Another round of constrained DPO: the multiplier of the last one, and what came of it."""
    pairs_per_prompt: int = Field(default=1, ge=1)
    """At most; each response is in one pair, so half as many as there are responses can be had."""
    seed: int = 0

    @model_validator(mode="after")
    def _one_multiplier(self) -> "OneShotConfig":
        if self.multiplier is not None and self.ascend is not None:
            raise ValueError("multiplier: got one and ascend; expected one of them")
        return self


class Scored(NamedTuple):
    """A response of the reference."""

    text: str
    reward: float
    cost: float


class Solution(NamedTuple):
    """A multiplier, and what the policy that is best under it has on average."""

    multiplier: float
    state: State | Literal["given"]
    cost: float
    reward: float


class Asked(NamedTuple):
    """A prompt with its scored responses."""

    prompt: Prompt
    responses: list[Scored]


def one_shot(config: OneShotConfig, run: Run) -> None:
    """Find the multiplier and write pseudo-preferences to `run.out`."""
    left_out: Counter[str] = Counter()
    asked = read_scored(config.scored, left_out)
    reward = torch.tensor([[one.reward for one in each.responses] for each in asked], dtype=torch.float64)
    cost = torch.tensor([[one.cost for one in each.responses] for each in asked], dtype=torch.float64)
    told: dict[str, JsonValue] = {}
    if config.ascend is None:
        solution = _solve(reward, cost, config, config.multiplier)
    else:
        before, now = multiplier_of(config.ascend.before), cost_of(config.ascend.scored)
        moved = ascend(before, now, budget=config.budget, lr=config.ascend.lr)
        solution = _solve(reward, cost, config, moved)
        told = {"multiplier_before": before, "cost_of_policy": round(now, 6)}
    run.licences |= {each.prompt.licence for each in asked}
    total = lagrangian(reward, cost, solution.multiplier)
    pairs = pseudo_pairs(asked, total, solution.multiplier, config.pairs_per_prompt, config.seed)
    written = write_records(run.out, pairs)
    run.notes |= {
        "pairs": written,
        "prompts": len(asked),
        "responses": reward.shape[1],
        "left_out": dict(left_out),
        "multiplier": round(solution.multiplier, 6),
        "constraint": solution.state,
        **told,
        "cost_of_reference": round(cost.mean().item(), 6),
        "cost_expected": round(solution.cost, 6),
        "reward_of_reference": round(reward.mean().item(), 6),
        "reward_expected": round(solution.reward, 6),
    }


def read_scored(path: Path, left_out: Counter[str]) -> list[Asked]:
    """Return prompts with as many responses each; what is left out is counted by its reason.

    Prompts with fewer responses than others are left out: all count alike in the dual.

    Raises:
        DataError: A row is no prompt with response, reward and cost, or no prompt has two responses, or they
            are not those of one model, or an id stands for two prompts.
    """
    asked: dict[str, Asked] = {}
    models: set[object] = set()
    for row in read_rows(path):
        if row.values.get("error") is not None:
            left_out["error"] += 1
            continue
        prompt = parse_record(_only_prompt(row), Prompt)
        models.add(row.values.get("model"))
        if len(models) > 1:
            found = " and ".join(sorted(map(str, models)))
            raise DataError(f"{row.path}:{row.line}: model: got {found}; expected responses of one reference")
        first = asked.setdefault(prompt.id, Asked(prompt, []))
        if first.prompt.prompt != prompt.prompt:
            raise DataError(f"{row.path}:{row.line}: id: '{prompt.id}' stands for another prompt above")
        first.responses.append(_scored(row))
    most = max((len(each.responses) for each in asked.values()), default=0)
    if most < 2:
        raise DataError(f"{path}: no prompt has two responses; expected rows of `score` over `generate -k`")
    left_out["prompts with fewer responses"] = sum(len(each.responses) < most for each in asked.values())
    return [each for each in asked.values() if len(each.responses) == most]


def pseudo_pairs(
    asked: list[Asked], totals: Tensor, multiplier: float, per_prompt: int, seed: int
) -> Iterator[Pair]:
    """Pair the responses of each prompt in a seeded order, and draw who is preferred from totals [P, K].

    Each pair tells the multiplier that its totals were made with.
    """
    generator = torch.Generator().manual_seed(seed)
    for (prompt, responses), total in zip(asked, totals, strict=True):
        order = torch.randperm(len(responses), generator=generator)
        for number in range(min(per_prompt, len(responses) // 2)):
            both = order[2 * number : 2 * number + 2]
            overall = int(draw_preferences(total[both[0]] - total[both[1]], generator))
            first, second = (responses[i] for i in both.tolist())
            yield Pair(
                id=f"{prompt.id}-p{number}",
                prompt=prompt.prompt,
                answers=(Answer(response=first.text), Answer(response=second.text)),
                overall=0 if overall == 0 else 1,
                source=prompt.source,
                licence=prompt.licence,
                label_origin="model:scorer",
                taxonomy=prompt.taxonomy,
                provenance={
                    "lagrangian": [round(value, 6) for value in total[both].tolist()],
                    "multiplier": multiplier,
                },
            )


def multiplier_of(path: Path) -> float:
    """Return the multiplier that the pairs of a file were drawn with.

    Raises:
        DataError: The file has no pair, or its first one does not tell the multiplier.
    """
    first = next(iter(read_records(path, Pair)), None)
    found = None if first is None else first.provenance.get("multiplier")
    if not isinstance(found, int | float):
        raise DataError(f"{path}: its first pair tells no multiplier; expected pairs of `one-shot`")
    return float(found)


def cost_of(path: Path) -> float:
    """Return the mean cost of a policy, every prompt alike, from rows of `score`.

    Raises:
        DataError: A row is no prompt with response, reward and cost, or there is none.
    """
    costs: dict[str, list[float]] = {}
    for row in read_rows(path):
        if row.values.get("error") is None:
            prompt = parse_record(_only_prompt(row), Prompt)
            costs.setdefault(prompt.id, []).append(_scored(row).cost)
    if not costs:
        raise DataError(f"{path}: no row has a response; expected rows of `score`")
    return fmean(map(fmean, costs.values()))


def _solve(reward: Tensor, cost: Tensor, config: OneShotConfig, given: float | None) -> Solution:
    if given is not None:
        found = [tilted_mean(v, reward, cost, given, beta=config.beta).item() for v in (cost, reward)]
        return Solution(given, "given", *found)
    solution = solve_dual(reward, cost, budget=config.budget, beta=config.beta)
    if solution.state == "infeasible":
        raise DataError(
            f"budget: got {config.budget:g}, but the cheapest responses cost {solution.cost:.4g} on average;"
            " expected more than that, or more responses of each prompt"
        )
    return Solution(*solution)


def _only_prompt(row: Row) -> Row:
    return row._replace(values={name: row.values[name] for name in row.values if name in Prompt.model_fields})


def _scored(row: Row) -> Scored:
    text, reward, cost = (row.values.get(name) for name in ("response", "reward", "cost"))
    if not isinstance(text, str) or not isinstance(reward, int | float) or not isinstance(cost, int | float):
        raise DataError(
            f"{row.path}:{row.line}: expected a prompt with response, reward and cost, as `score` writes"
        )
    return Scored(text, float(reward), float(cost))


ONE_SHOT = Step("one-shot", 2, one_shot, writes_file=True, config=OneShotConfig)
