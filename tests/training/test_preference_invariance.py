"""What must not change a step of any objective: the split, the order, the padding, the layout of a pair."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from equipoise.models.backbone import load_causal
from equipoise.models.layout import Row, pack, response_logps, split_rows
from equipoise.objectives.message_wise import MESSAGE_WISE_LOSSES
from equipoise.objectives.unpaired import UNPAIRED_LOSSES
from equipoise.training.messages import MessageLosses, message_task
from equipoise.training.pair_order import LabelledRow, OrderedPair
from equipoise.training.paired import PreferenceLosses, pair_task
from equipoise.training.policy_rows import make_row
from equipoise.training.preference import OBJECTIVES
from equipoise.training.reference import reference_logps
from equipoise.training.trainer import Task
from equipoise.training.unpaired import UnpairedLosses, borrowed_rows, unpaired_task

TEXTS = [
    ("how do i bake bread", "mix flour and water", "wait until the dough has doubled, and then some more"),
    ("why are there tides", "no", "the moon and the sun pull at the water, and the earth turns"),
    ("what is kind", "a short answer is kind", "i am sorry, but i cannot help with that request"),
    ("the weather in the mountains", "take a warm coat", "it changes quickly"),
    ("0 1 2 3", "4 5 6 7 8 9", "4"),
    ("which is better, a short answer or a long one", "a short one", "yes"),
]
UNSAFE = [(False, False), (False, True), (True, True), (True, False), (False, True), (False, False)]
WHOLE = [tuple(range(6))]
SPLITS = {
    "one by one": [(i,) for i in range(6)],
    "uneven": [(0, 3), (1,), (2, 4, 5)],
    "another order": [(5, 2, 0, 4, 1, 3)],
    "another order, split": [(4, 1), (5, 0, 3), (2,)],
}


class Step:
    """One optimiser step of one objective on six rows, in float64, with a policy that has moved."""

    def __init__(self, folder: Path, place: Path, objective: str) -> None:
        tokenizer = load_causal(folder, device="cpu").tokenizer
        self.policy = AutoModelForCausalLM.from_pretrained(folder).double()
        self.rows = [make_row(tokenizer, prompt, answers) for prompt, *answers in TEXTS]
        gen = torch.Generator().manual_seed(3)
        drift = torch.randn(6, 2, generator=gen)  # as if the reference had been another model

        def reference(rows: Sequence[Row], name: str) -> list[Tensor]:
            found = reference_logps(self.policy, rows, place / name, tokens_per_batch=200)
            return [logps + moved for logps, moved in zip(found, drift, strict=True)]

        loss = OBJECTIVES[objective]
        if objective in UNPAIRED_LOSSES:
            labelled = [LabelledRow(row, (True, False), 0.5 + 0.1 * i) for i, row in enumerate(self.rows)]
            _, borrowed = borrowed_rows(labelled)
            lower = [logps - 1.0 for logps in reference(borrowed, "borrowed")]
            losses = UnpairedLosses(self.policy, loss, 0.1)
            self.task = unpaired_task(losses, labelled, reference(self.rows, "own"), borrowed, lower)
            return
        pairs = [
            OrderedPair(row, *UNSAFE[i], severity_gap=i - 2, weight=0.5 + 0.1 * i)
            for i, row in enumerate(self.rows)
        ]
        if objective in MESSAGE_WISE_LOSSES:
            by_token = MessageLosses(self.policy, loss, 0.1)
            known = reference_logps(
                self.policy, self.rows, place / "own", tokens_per_batch=200, each_token=True
            )
            moved = [tokens + one[0] / len(tokens) for tokens, one in zip(known, drift, strict=True)]
            kept = [torch.arange(len(tokens)) % 3 > 0 for tokens in known]
            self.task = message_task(by_token, pairs, moved, kept)
        else:
            losses = PreferenceLosses(self.policy, loss, 0.1)
            margins = torch.linspace(-1, 2, 6)
            self.task = pair_task(losses, pairs, reference(self.rows, "own"), margins)

    def take(
        self, micros: Sequence[tuple[int, ...]], change: Callable[[Any], Any] = lambda batch: batch
    ) -> Tensor:
        """Loss of the step and all its gradients, [1 + parameters], taken as the trainer takes them."""
        task: Task = self.task
        self.policy.zero_grad()
        batches = [(change(task.collate(indices)), 1.0) for indices in micros]
        if task.before_step is not None:
            task.before_step(task.model, batches)
        total = torch.zeros(1, dtype=torch.float64)
        for batch, _ in batches:
            loss = task.model(batch).sum() / sum(task.items)
            loss.backward()
            total += loss.detach()
        return torch.cat([total, *(p.grad.flatten() for p in self.policy.parameters())])


@pytest.fixture(scope="module", params=list(OBJECTIVES))
def step(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Step:
    return Step(tiny_llama, tmp_path_factory.mktemp("step"), request.param)


@pytest.fixture(scope="module")
def expected(step: Step) -> Tensor:
    """Of the step in one piece."""
    found = step.take(WHOLE)
    assert found[1:].abs().max() > 1e-4
    return found


@pytest.mark.parametrize("name", SPLITS)
def test_neither_split_nor_order_nor_padding_changes_a_step(step: Step, expected: Tensor, name: str) -> None:
    torch.testing.assert_close(step.take(SPLITS[name]), expected, rtol=1e-9, atol=1e-10)


def test_responses_that_share_their_prompt_teach_what_separate_rows_teach(
    step: Step, expected: Tensor
) -> None:
    def apart(batch: Any) -> Any:
        changed = batch._replace(rows=split_rows(batch.rows))
        return (
            changed._replace(borrowed=split_rows(batch.borrowed)) if hasattr(batch, "borrowed") else changed
        )

    found = step.take(WHOLE, apart)
    # the library's normalisation layers work in float32, also in a float64 model
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_the_padding_id_changes_nothing(step: Step, expected: Tensor) -> None:
    def padded(batch: Any) -> Any:
        return batch._replace(rows=pack(batch.rows, pad_id=7))

    torch.testing.assert_close(step.take(WHOLE, padded), expected, rtol=1e-9, atol=1e-10)


def test_the_baseline_is_of_the_whole_step_and_not_zero(step: Step, expected: Tensor) -> None:
    if not isinstance(step.task.model, UnpairedLosses):
        assert step.task.before_step is None
        return
    step.take(SPLITS["uneven"])
    split = step.task.model.baseline
    step.take(WHOLE)
    assert split.item() > 0.1
    assert split.item() == pytest.approx(step.task.model.baseline.item(), rel=1e-9)


def test_no_response_loses_its_first_token_or_gains_padding(tiny_llama: Path) -> None:
    """Safe-RLHF's DPO slices shifted log-probabilities with unshifted places: one token off, and one PAD."""
    policy = AutoModelForCausalLM.from_pretrained(tiny_llama).double()
    rows = [Row([5, 6, 7], [[10, 11, 12, 9], [20, 21, 9]])]
    batch = pack(rows)
    assert [batch.targets[batch.slots == k].tolist() for k in (0, 1)] == rows[0].responses
    with torch.no_grad():
        found = response_logps(policy, rows).sums
        for logp, response in zip(found, rows[0].responses, strict=True):
            ids = torch.tensor([rows[0].prompt + response])
            logps = torch.log_softmax(policy(ids).logits[0], dim=-1)
            alone = sum(logps[2 + t, token] for t, token in enumerate(response))
            torch.testing.assert_close(logp, alone, rtol=1e-10, atol=0)


def test_in_sixteen_bits_the_reference_is_what_the_policy_begins_with(
    tiny_llama: Path, tmp_path: Path
) -> None:
    backbone = load_causal(tiny_llama, dtype="float32", device="cpu")
    row = make_row(backbone.tokenizer, "how do i bake bread", ["mix flour and water " * 4, "wait " * 9])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        began = response_logps(backbone.model.eval(), [row]).sums.float()
    found, exact = (
        reference_logps(backbone.model, [row], tmp_path / str(bf16), tokens_per_batch=200, bf16=bf16)[0]
        for bf16 in (True, False)
    )
    torch.testing.assert_close(found, began, rtol=1e-6, atol=0)
    assert (exact - began).abs().max() > 1e-4
