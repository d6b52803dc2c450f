"""Both sides of online training under one constraint: ours, and TRL's GRPOTrainer with a callback.

All that they are told is the same: an adapter of one rank on the same layers, which is off in the reference;
prompts in one order; reward and cost, which are functions of the text; advantages less the group's mean, not
divided by anything, since ours would scale reward and cost apart where TRL scales their sum; the bound of the
ratio; k3 in the loss, whose gradient TRL leaves as it is with `use_bias_correction_kl=False`; AdamW, a
constant rate and one step of a rollout. TRL's callback moves the weights of the reward functions after a
step, since that is when it is called: the multiplier that blends a rollout is there one rollout old, and here
it is not.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from side_rows import Job
from sides import Training, now, trl_settings
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import TrainerCallback

from equipoise.data.io import read_records
from equipoise.objectives.multiplier import MultiplierState, projected
from equipoise.policy.experience import turn
from equipoise.policy.settings import GroupLagConfig
from equipoise.records import Exchange, Prompt, messages_of

BUDGET = 0.0
STEP = 0.1
"""Of the multiplier, under the projected rule."""
ALPHA = 32.0
PAGES = {"page_size": 128, "max_batch_tokens": 1024}
"""Of transformers' continuous batches, which would else fill half of all memory with zeros."""
LOSSES = {"tokens": "dapo", "responses": "grpo"}
"""Our `mean_over`, and TRL's `loss_type` that is the same mean over one step."""


def variety(text: str) -> float:
    """The reward: share of a text's words that it has not had before; 0 where it has none."""
    words = text.split()
    return len(set(words)) / len(words) if words else 0.0


def vowels(text: str) -> float:
    """The cost: ten times the share of the letter e, less 0.9, which is about the budget in plain English."""
    return 10 * text.count("e") / len(text) - 0.9 if text else 0.0


def reward(exchanges: Sequence[Exchange]) -> list[float]:
    """The reward as our settings name it."""
    return [variety(exchange.response) for exchange in exchanges]


def cost(exchanges: Sequence[Exchange]) -> list[float]:
    """The cost as our settings name it."""
    return [vowels(exchange.response) for exchange in exchanges]


def our_config(job: Job) -> GroupLagConfig:
    """What our side is told."""
    here = __name__
    return GroupLagConfig.model_validate(
        {
            "prompts": [job["prompts_file"]],
            "roles": {
                "policy": job["model"],
                "rank": job["rank"],
                "alpha": ALPHA,
                "dtype": "float32",
                "device": "cpu",
            },
            "scoring": {"reward": f"{here}:reward", "costs": {"cost": {"source": f"{here}:cost"}}},
            "updates": job["updates"],
            "rollout": {name: job[name] for name in ("prompts", "samples", "max_new_tokens")},
            "constraints": [{"name": "cost", "budget": BUDGET}],
            "multiplier": {
                "rule": "projected",
                "rule_params": {"lr": STEP},
                "initial": 1.0,
                "ceiling": 1e6,
                "scaled": False,
            },
            "kl": {"beta": job["beta"], "estimator": "k3"},
            "mean_over": job["mean_over"],
            "estimator": "grpo",
            "scale": "none",
            "optim": {
                "lr": job["lr"],
                "minibatches": 1,
                "epochs": job["epochs"],
                "clip_norm": job["clip"],
                "tokens_per_micro_batch": job["tokens"],
            },
            "seed": job["seed"],
            "checkpoint_every": 10**6,
            "samples_logged": 0,
        }
    )


def ours(job: Job) -> Training:
    """`equipoise train group-lag`, from the settings to the saved policy."""
    from equipoise.lineage import produce
    from equipoise.pipeline.online import TRAIN_GROUP_LAG

    config = our_config(job)
    out = Path(job["folder"]) / "policy"

    def train() -> list[float]:
        produce(out, TRAIN_GROUP_LAG, config)
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
        tell(
            job,
            lengths=[round(line["length"] * line["responses"]) for line in lines],
            rewards=[line["reward"] for line in lines],
            costs=[line["costs"]["cost"] for line in lines],
            multipliers=[line["multipliers"]["cost"] for line in lines],
            writing=math.fsum(line["seconds"]["rollout"] for line in lines),
        )
        return [line["policy_loss"] for line in lines]

    return train


def tell(job: Job, **told: Any) -> None:
    """Leave what a side has seen, an entry for each rollout, beside its job."""
    (Path(job["folder"]) / "told.json").write_text(json.dumps(told), "utf-8")


class Held(TrainerCallback):  # type: ignore[misc]
    """Reward functions of TRL's kind, and the multiplier that moves their weights after every step."""

    def __init__(self) -> None:
        """Begin at 1, as ours does."""
        self.multiplier = 1.0
        self.trainer: Any = None
        self.seen: dict[str, list[float]] = {"lengths": [], "rewards": [], "costs": [], "multipliers": []}
        self.writing = 0.0

    def reward(self, completions: Sequence[Any], completion_ids: Sequence[Any], **_: Any) -> list[float]:
        """The reward of each response."""
        found = [variety(text_of(one)) for one in completions]
        self.seen["lengths"].append(sum(map(len, completion_ids)))
        self.seen["rewards"].append(math.fsum(found) / len(found))
        return found

    def cost(self, completions: Sequence[Any], **_: Any) -> list[float]:
        """The cost of each response."""
        found = [vowels(text_of(one)) for one in completions]
        self.seen["costs"].append(math.fsum(found) / len(found))
        return found

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Move the multiplier by the mean cost of the rollout, and the weights with it."""
        excess = self.seen["costs"][-1] - BUDGET
        self.multiplier = projected(MultiplierState(self.multiplier), excess, math.inf, lr=STEP).value
        self.seen["multipliers"].append(self.multiplier)
        self.trainer.reward_weights[:] = torch.tensor(weights_of(self.multiplier))

    def watch(self, trainer: Any) -> None:
        """Belong to a trainer, and note the time that it spends writing."""
        self.trainer = trainer
        write = trainer._generate_single_turn

        def noted(*args: Any, **kwargs: Any) -> Any:
            start = now()
            found = write(*args, **kwargs)
            self.writing += now().since(start).wall
            return found

        trainer._generate_single_turn = noted


def text_of(completion: Any) -> str:
    """The text of what TRL gives to a reward function for a prompt that is a chat."""
    text: str = completion[0]["content"]
    return text


def weights_of(multiplier: float) -> list[float]:
    """Of reward and cost in what is learned."""
    return [1 / (1 + multiplier), -multiplier / (1 + multiplier)]


def in_order(job: Job) -> list[dict[str, Any]]:
    """The prompts as TRL is given them, in the order in which our rollouts take them."""
    prompts = list(read_records(Path(job["prompts_file"]), Prompt))
    turns = [turn(len(prompts), job["prompts"], n, f"{job['seed']}/prompts") for n in range(job["updates"])]
    return [{"prompt": messages_of(prompts[i].prompt)} for order in turns for i in order]


def by_trl(job: Job, *, batch: int, continuous: bool = False) -> Training:
    """TRL's trainer with the callback.

    Args:
        job: What it is told.
        batch: Responses that are learned from at a time; a rollout is always written at once.
        continuous: Write with transformers' continuous batches.
    """
    trainer_of = prepared(job, batch=batch, continuous=continuous)

    def train() -> list[float]:
        held = Held()
        trainer = trainer_of(weights_of(held.multiplier), [held.reward, held.cost], callbacks=[held])
        held.watch(trainer)
        trainer.train()
        tell(job, **held.seen, writing=held.writing)
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return train


def prepared(job: Job, *, batch: int, continuous: bool = False) -> Callable[..., Any]:
    """Import what TRL needs; return what makes its trainer, of weights, reward functions and more."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    settings = trl_settings({**job, "batch": batch}, best=False, bf16=False)
    for name in ("max_length", "train_sampling_strategy", "num_train_epochs"):
        del settings[name]  # of pairs alone
    settings |= {
        "gradient_accumulation_steps": job["prompts"] * job["samples"] // batch,
        "max_steps": job["updates"],
        "num_iterations": job["epochs"],
        "num_generations": job["samples"],
        "max_completion_length": job["max_new_tokens"],
        "temperature": 1.0,
        "shuffle_dataset": False,
        "beta": job["beta"],
        "use_bias_correction_kl": False,
        "loss_type": LOSSES[job["mean_over"]],
        "scale_rewards": "none",
        "adam_beta2": 0.95,
        "use_transformers_continuous_batching": continuous,
        "transformers_continuous_batching_config": PAGES
        | {"num_blocks": 3 * job["prompts"] * job["samples"]},
    }

    def make(weights: Sequence[float], functions: Sequence[Any], **more: Any) -> Any:
        adapter = LoraConfig(
            r=job["rank"], lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        return GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
            reward_funcs=list(functions),
            args=GRPOConfig(**settings, reward_weights=list(weights)),
            train_dataset=Dataset.from_list(in_order(job)),
            processing_class=AutoTokenizer.from_pretrained(job["model"]),
            peft_config=adapter,
            **more,
        )

    return make


class FirstStep:
    """The loss and the gradients of the first optimiser step of a training, whoever takes it.

    The loss is the sum of all numbers that a backward pass began with: nothing else makes the gradients.
    """

    def __init__(self) -> None:
        """Watch from `with` on."""
        self.loss = math.nan
        self.gradients: list[Tensor] = []
        self._parts: list[float] = []

    def __enter__(self) -> "FirstStep":
        """Begin."""
        self._back = back = Tensor.backward

        def noted(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
            self._parts.append(tensor.item())
            back(tensor, *args, **kwargs)  # type: ignore[no-untyped-call]

        Tensor.backward = noted  # type: ignore[method-assign, assignment]
        self._hook = register_optimizer_step_pre_hook(self._before)
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        Tensor.backward = self._back  # type: ignore[method-assign]
        self._hook.remove()

    def _before(self, optimizer: Optimizer, *_: object) -> None:
        if not self.gradients:
            self.loss = math.fsum(self._parts)
            found = [p.grad for group in optimizer.param_groups for p in group["params"]]
            self.gradients = [gradient.clone() for gradient in found if gradient is not None]
