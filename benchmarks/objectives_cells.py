"""The steps behind the table of `objectives.py`: data, judges, and for each objective and seed its runs.

One recipe of content-addressed steps, so that what two cells share is done once and a kill costs little.
A step is named after its cell and its seed: `dpo-0`, evaluated by `dpo-0-reported` and `dpo-0-dev`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from equipoise.config import Config, parse_config
from equipoise.pipeline.recipe import Recipe
from equipoise.pipeline.steps import STEPS

STEPS |= {"objectives.choose": "objectives_steps:CHOOSE"}
FILES = {"mini": "CC-BY-NC-4.0", "pairs": "CC-BY-NC-4.0"}
REWARDS = {"pandalm_test": "Apache-2.0", "alpaca_eval_gpt4": "CC-BY-NC-4.0"}
PAIRS = "${steps.chosen}/pairs.jsonl"
BETA = 0.1
"""Of every objective that has the same default."""


class Settings(Config):
    """What the table is made with; the defaults are those of the published numbers."""

    data: str
    """Folder with the rows."""
    model: str = "smollm2-135m"
    encoder: str = "minilm"
    heads: dict[str, Any] = {}
    """Of guard and scorers on the encoder; their own defaults where empty."""
    pairs: int = 150
    max_tokens: int = 160
    sampled: int = 40
    """Training prompts on which the reference is sampled, for multipliers."""
    samples: int = 4
    suite: str = "builtin"
    reported: dict[str, Any] = {"harmful": 60, "benign": 40}
    dev: dict[str, Any] = {"harmful": 80, "benign": 80, "select": "rest"}
    """What these leave out, so none of `reported`, whose spread the larger one begins with."""
    new_tokens: int = 48
    optim: dict[str, Any] = {"lr": 3e-4, "epochs": 1, "batch_size": 4}
    """Of every policy alike."""
    bf16: bool = False
    split_seed: int = 5


class Cell(NamedTuple):
    """A row of the table."""

    title: str
    learns: str
    """From which labels."""


CELLS = {
    "sft": Cell("SFT on the safer answer, where it is safe", "safer"),
    "dpo": Cell("DPO", "safer"),
    "dpo_better": Cell("DPO on the better answer", "better"),
    "cdpo": Cell("cDPO, label smoothing .1", "safer"),
    "ipo": Cell("IPO", "safer"),
    "simpo": Cell("SimPO", "safer"),
    "orpo": Cell("ORPO", "safer"),
    "kto": Cell("KTO", "safer"),
    "bfpo": Cell("BFPO", "better, safe or not"),
    "safe_dpo": Cell("SafeDPO", "better, safe or not"),
    "modpo": Cell("MODPO, margin of the DPO policy", "better, safer"),
    "mocan": Cell("MoCAN: soft DPO, one-shot multiplier of a scorer", "reward and cost"),
    "pecan": Cell("PeCAN: DPO, one-shot multiplier of two DPO policies", "better, safer"),
    "constrained_dpo": Cell("Constrained DPO: soft DPO, multiplier after one round", "reward and cost"),
    "sacpo": Cell("SACPO: DPO on the better answer, then KTO on safety", "better, safe or not"),
    "p_sacpo": Cell("P-SACPO: the last two policies merged by halves", "better, safe or not"),
    "soup": Cell("Rewarded soup: both DPO policies merged by halves", "better, safer"),
    "adpo": Cell("ADPO, tokens scored for cost", "safer, cost of tokens"),
    "best_of_n": Cell("SFT on the best of both answers, bad tokens masked", "reward and cost of tokens"),
}
"""In the order in which they are done."""

NEEDS_MULTIPLIER = {"mocan", "pecan", "constrained_dpo"}


def recipe(settings: Settings, seeds: int, multipliers: Mapping[str, float]) -> Recipe:
    """Return all steps that can be told; a cell whose multiplier is not known yet is left out."""
    steps = _data(settings) | _judges(settings)
    for seed in range(seeds):
        for name, step in policies(settings, seed, multipliers).items():
            steps[f"{name}-{seed}"] = step
    models = {name: f"${{steps.{name}}}" for name in steps if name.rpartition("-")[0] in CELLS}
    for name, model in {"base": settings.model, **models}.items():
        for kind, chosen in (("reported", settings.reported), ("dev", settings.dev)):
            steps[f"{name}-{kind}"] = _evaluated(settings, model, chosen)
    data = {
        "name": "objectives",
        "about": "Every objective from one start on the same pairs.",
        "steps": steps,
    }
    return parse_config(Recipe, data, "objectives")


def policies(settings: Settings, seed: int, multipliers: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return the runs of one seed, by name, in an order in which each can read those before it."""
    optim = {**settings.optim, "bf16": settings.bf16, "seed": seed}
    learned = {"model": settings.model, "optim": optim}
    scored = {"scorer": "${steps.teacher}", "reward_weight": 1.0}
    tokens = {"scorer": "${steps.token_scorer}"}

    def at(name: str) -> str:
        return f"${{steps.{name}-{seed}}}"

    def on_pairs(objective: str, label: str = "safer", **more: Any) -> dict[str, Any]:
        given = {"pairs": [PAIRS], "objective": objective, "preference": label, **learned, **more}
        given["keep_reference"] = False  # or the minutes of a cell would depend on which came before
        return {"run": "train.preference", "with": given}

    def merged(*models: str) -> dict[str, Any]:
        halves = {"models": [at(model) for model in models], "weights": [0.5, 0.5]}
        return {"run": "models.merge", "with": halves}

    def soft(multiplier: float) -> dict[str, Any]:
        return on_pairs("soft_dpo", margin={**scored, "cost_weight": multiplier})

    def implicit(rows: str) -> dict[str, Any]:
        policies = {"reference": settings.model, "helpful": at("dpo_better"), "safe": at("dpo"), "beta": BETA}
        return {"run": "score", "with": {"file": rows, "policies": policies}}

    steps = {
        "sft": {"run": "train.sft", "with": {"exchanges": ["${steps.chosen}/safer.jsonl"], **learned}},
        "dpo": on_pairs("dpo"),
        "dpo_better": on_pairs("dpo", "better"),
        "cdpo": on_pairs("dpo", objective_params={"label_smoothing": 0.1}),
        **{name: on_pairs(name) for name in ("ipo", "simpo", "orpo", "kto")},
        **{name: on_pairs(name, "better") for name in ("bfpo", "safe_dpo")},
        "modpo": on_pairs("modpo", "better", margin={"policy": at("dpo"), "policy_beta": BETA}),
        "pecan_sampled": implicit("${steps.sampled}"),
        "pecan_answers": implicit("${steps.chosen}/answers.jsonl"),
        "constrained_first": soft(1.0),
        "constrained_sampled": _sampled(settings, at("constrained_first"), {}),
        "constrained_scored": _scored(at("constrained_sampled")),
        "sacpo": on_pairs(
            "kto", "is_safe", objective_params={"beta": 0.025}, **{**learned, "model": at("dpo_better")}
        ),
        "p_sacpo": merged("dpo_better", "sacpo"),
        "soup": merged("dpo_better", "dpo"),
        "adpo": on_pairs("adpo", messages=tokens),
        "best_of_n": {
            "run": "train.sft",
            "with": {
                "exchanges": ["${steps.chosen}/both.jsonl"],
                "include_unsafe": True,
                "best_of": {"scorer": "${steps.teacher}"},
                "messages": tokens,
                **learned,
            },
        },
    }
    if (known := multipliers.get("mocan")) is not None:
        steps["mocan"] = soft(known)
    if (known := multipliers.get(f"constrained_dpo-{seed}")) is not None:
        steps["constrained_dpo"] = soft(known)
    if (known := multipliers.get(f"pecan-{seed}")) is not None:
        given = {"scored": at("pecan_answers"), "beta": BETA, "multiplier": known, "seed": seed}
        steps["pecan_pairs"] = {"run": "one-shot", "with": given}
        steps["pecan"] = on_pairs("dpo", "overall", pairs=[at("pecan_pairs")])
    return steps


def _data(settings: Settings) -> dict[str, dict[str, Any]]:
    files = {f"pku_saferlhf_{name}": licence for name, licence in FILES.items()} | REWARDS
    steps: dict[str, dict[str, Any]] = {
        name: {
            "run": "data.import",
            "with": {"source": "jsonl", "path": f"{settings.data}/{name}.jsonl", "licence": licence},
            "file": f"{name}.jsonl",
        }
        for name, licence in files.items()
    }
    steps["split"] = {
        "run": "data.split",
        "with": {
            "files": [f"${{steps.{name}}}" for name in files],
            "fractions": {"judge": 0.3, "teacher": 0.25, "policy": 0.3, "test": 0.15},
            "seed": settings.split_seed,
        },
    }
    return steps


def _judges(settings: Settings) -> dict[str, dict[str, Any]]:
    """The judges of the table, and the teachers, which label; no prompt is in two parts of the rows."""
    heads = {"backbone": settings.encoder, **settings.heads}
    with_better = {part: [*_part(part), *_part(part, REWARDS)] for part in ("judge", "teacher")}
    once = {**settings.optim, "bf16": settings.bf16, "batch_size": 8}
    short = {"model": settings.model, "max_tokens": settings.max_tokens, "count": settings.pairs}
    return {
        "guard": {
            "run": "train.guard",
            "with": {"exchanges": ["${builtin.exchanges}"], "pairs": _part("judge"), **heads},
        },
        "scorer": {"run": "train.scorer", "with": {"pairs": with_better["judge"], **heads}},
        "teacher": {"run": "train.scorer", "with": {"pairs": with_better["teacher"], **heads}},
        "detection": {
            "run": "evaluate.detection",
            "with": {
                "guard": "${steps.guard}",
                "scorer": "${steps.scorer}",
                "train_exchanges": ["${builtin.exchanges}"],
                "train_pairs": _part("judge"),
                "test_pairs": _part("test"),
                "test_rewards": _part("test", REWARDS),
            },
        },
        "token_pairs": {"run": "objectives.choose", "with": {"pairs": _part("teacher"), **short}},
        "token_scorer": {
            "run": "train.scorer",
            "with": {
                "pairs": ["${steps.token_pairs}/pairs.jsonl"],
                "backbone": settings.model,
                "trunk": "last",
                "tune": "lora",
                "optim": once,
            },
        },
        "chosen": {
            "run": "objectives.choose",
            "with": {
                "pairs": _part("policy"),
                "scorer": "${steps.teacher}",
                "sampled": settings.sampled,
                **short,
            },
        },
        "sampled": _sampled(settings, settings.model, {"samples": settings.samples, "temperature": 1.0}),
        "scored": _scored("${steps.sampled}"),
    }


def _part(part: str, names: Mapping[str, str] | None = None) -> list[str]:
    files = [f"pku_saferlhf_{name}" for name in FILES] if names is None else list(names)
    return [f"${{steps.split}}/{part}/{name}.jsonl" for name in files]


def _sampled(settings: Settings, model: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
    given = {"models": [model], "prompts": "${steps.chosen}/prompts.jsonl", "batch_size": 64}
    return {
        "run": "generate",
        "with": {**given, "sampling": {"max_new_tokens": settings.new_tokens, **sampling}},
    }


def _scored(rows: str) -> dict[str, Any]:
    return {"run": "score", "with": {"file": rows, "scorer": "${steps.teacher}"}}


def _evaluated(settings: Settings, model: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    judged = {"model": model, "guard": "${steps.guard}", "scorer": "${steps.scorer}"}
    asked = {"suite": settings.suite, "max_new_tokens": settings.new_tokens, "batch_size": 50, **chosen}
    return {"run": "evaluate", "with": {**judged, **asked}}
