"""The first loss that TRL's own trainers log, on a policy that has left its reference, is ours to 1e-6.

Needs TRL 1.16, which no other part of the project does; skipped where it is not installed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from equipoise.models.layout import Row, response_hidden
from equipoise.objectives.preference import PairLogps, chosen_nll, dpo, ipo, orpo, simpo
from equipoise.objectives.scoring import RewardPairs, bradley_terry
from equipoise.objectives.unpaired import kto
from equipoise.training.pair_order import LabelledRow, OrderedPair
from equipoise.training.paired import PreferenceLosses, pair_task
from equipoise.training.policy_rows import make_row
from equipoise.training.reference import reference_logps
from equipoise.training.unpaired import UnpairedLosses, borrowed_rows, unpaired_task

trl = pytest.importorskip("trl", minversion="1.16")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEXTS = [
    ("how do i bake bread", "mix flour and water", "wait until the dough has doubled, and then some more"),
    ("why are there tides", "no", "the moon and the sun pull at the water, and the earth turns"),
    ("the weather in the mountains", "take a warm coat", "it changes quickly"),
    ("which is better, a short answer or a long one", "a short one", "yes"),
]
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": len(TEXTS),
    "max_steps": 1,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "max_length": 200,
    "disable_tqdm": True,
}


def rendered(prompt: str) -> str:
    """The prompt as the template writes it; TRL adds the end of the turn itself."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


PAIR_ROWS = [{"prompt": rendered(p), "chosen": w, "rejected": l} for p, w, l in TEXTS]  # noqa: E741
SINGLE_ROWS = [
    {"prompt": rendered(prompt), "completion": answers[i % 2], "label": i % 2 == 0}
    for i, (prompt, *answers) in enumerate(TEXTS)
]


class Start:
    """A reference, and a policy that is no longer the same; both in float64."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.reference = AutoModelForCausalLM.from_pretrained(folder).double()
        self.policy = moved(AutoModelForCausalLM.from_pretrained(folder).double())
        self.rows = [make_row(self.tokenizer, prompt, answers) for prompt, *answers in TEXTS]

    def reference_of(self, rows: Sequence[Row], path: Path) -> tuple[Tensor, ...]:
        return reference_logps(self.reference, rows, path, tokens_per_batch=1000)


def moved(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def start(tiny_llama: Path) -> Start:
    return Start(tiny_llama)


def first_log(trainer: Any) -> dict[str, float]:
    trainer.train()
    return next(entry for entry in trainer.state.log_history if "loss" in entry)


def dataset(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(rows)


@torch.no_grad()
def our_pairs(start: Start, path: Path) -> PairLogps:
    """Both responses of each pair through our own layout and reference pass."""
    pairs = [
        OrderedPair(row, chosen_unsafe=False, rejected_unsafe=False, severity_gap=None, weight=1.0)
        for row in start.rows
    ]
    losses = PreferenceLosses(start.policy, dpo, 0.1)
    task = pair_task(losses, pairs, start.reference_of(start.rows, path))
    return losses.logps(task.collate(range(len(pairs))))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "beta"), [("sigmoid", 0.3), ("ipo", 0.1)])
def test_dpo_and_ipo(tmp_path: Path, start: Start, name: str, beta: float) -> None:
    pair = our_pairs(start, tmp_path / "reference")
    mine = dpo(pair, beta=beta) if name == "sigmoid" else ipo(pair, tau=beta)
    arguments = trl.DPOConfig(output_dir=str(tmp_path), loss_type=name, beta=beta, **COMMON)
    theirs = first_log(
        trl.DPOTrainer(
            model=start.policy,
            ref_model=start.reference,
            args=arguments,
            train_dataset=dataset(PAIR_ROWS),
            processing_class=start.tokenizer,
        )
    )
    assert theirs["loss"] == pytest.approx(mine.mean().item(), rel=1e-6)


def test_kto(tmp_path: Path, start: Start) -> None:
    """TRL borrows from the row before in its batch, as we do from the row before in the data."""
    labelled = [
        LabelledRow(row._replace(responses=[row.responses[i % 2]]), (i % 2 == 0,), 1.0)
        for i, row in enumerate(start.rows)
    ]
    _, borrowed = borrowed_rows(labelled)
    losses = UnpairedLosses(start.policy, lambda rows: kto(rows, beta=0.3, undesirable_weight=1.5), 0.3)
    task = unpaired_task(
        losses,
        labelled,
        start.reference_of([one.row for one in labelled], tmp_path / "own"),
        borrowed,
        start.reference_of(borrowed, tmp_path / "borrowed"),
    )
    batch: Any = task.collate(range(len(labelled)))
    losses.before_step(losses, [(batch, 1.0)])
    with torch.no_grad():
        mine = losses(batch).mean().item()
    arguments = trl.KTOConfig(output_dir=str(tmp_path), beta=0.3, undesirable_weight=1.5, **COMMON)
    theirs = first_log(
        trl.KTOTrainer(
            model=start.policy,
            ref_model=start.reference,
            args=arguments,
            train_dataset=dataset(SINGLE_ROWS),
            processing_class=start.tokenizer,
        )
    )
    assert theirs["kl"] == pytest.approx(losses.baseline.item(), rel=1e-5, abs=1e-6)
    assert theirs["loss"] == pytest.approx(mine, rel=1e-6)


def test_reward(tmp_path: Path, tiny_llama: Path, start: Start) -> None:
    """With another padding token: where it is the end of the turn, transformers reads the token before."""
    start.tokenizer.pad_token = "<|endoftext|>"
    scorer = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    scorer.config.pad_token_id = start.tokenizer.pad_token_id
    scorer = moved(scorer.double())
    with torch.no_grad():
        start.policy.model.load_state_dict(scorer.model.state_dict())
        rewards = scorer.score(response_hidden(start.policy, start.rows)).squeeze(-1)
    better = torch.zeros(len(TEXTS), dtype=torch.long)
    mine = bradley_terry(RewardPairs(rewards[0::2], rewards[1::2], better), centring=0.0)
    arguments = trl.RewardConfig(output_dir=str(tmp_path), **COMMON)
    theirs = first_log(
        trl.RewardTrainer(
            model=scorer,
            args=arguments,
            train_dataset=dataset(
                [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in PAIR_ROWS]
            ),
            processing_class=start.tokenizer,
        )
    )
    assert theirs["loss"] == pytest.approx(mine.mean().item(), rel=1e-6)


def test_simpo(tmp_path: Path, start: Start) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    mine = simpo(our_pairs(start, tmp_path / "reference"), beta=2.0, gamma=0.5).mean().item()
    arguments = CPOConfig(
        output_dir=str(tmp_path), loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.5, beta=2.0, **COMMON
    )
    theirs = first_log(
        CPOTrainer(
            model=start.policy,
            args=arguments,
            train_dataset=dataset(PAIR_ROWS),
            processing_class=start.tokenizer,
        )
    )
    assert theirs["loss"] == pytest.approx(mine, rel=1e-6)


def test_orpo(tmp_path: Path, start: Start) -> None:
    """The odds-ratio term; TRL's likelihood term also counts the tokens of the prompt, and is set apart."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    pair = our_pairs(start, tmp_path / "reference")
    mine = (orpo(pair, beta=0.4) - chosen_nll(pair)).mean().item()
    theirs = first_log(
        ORPOTrainer(
            model=start.policy,
            args=ORPOConfig(output_dir=str(tmp_path), beta=0.4, **COMMON),
            train_dataset=dataset(PAIR_ROWS),
            processing_class=start.tokenizer,
        )
    )
    assert theirs["loss"] - theirs["nll_loss"] == pytest.approx(mine, rel=1e-6, abs=1e-6)
