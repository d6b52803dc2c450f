"""Both sides of the benchmarks of trainings learn the same, step by step; needs TRL 1.16."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.training_args import OptimizerNames

from equipoise.data.io import read_records
from equipoise.models.backbone import load_tokenizer
from equipoise.models.layout import response_logps
from equipoise.objectives.preference import dpo
from equipoise.records import Pair
from equipoise.training.optim import OptimSettings
from equipoise.training.optim import arguments as optim_arguments
from equipoise.training.pair_order import OrderedPair, PairSettings, order_pairs
from equipoise.training.paired import PreferenceLosses, pair_task
from equipoise.training.task import Task
from equipoise.training.trainer import _StepTrainer

trl = pytest.importorskip("trl", minversion="1.16")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

NAMES = ("common", "side_rows", "sides", "race", "preference", "scorer")
STEPS, BATCH = 20, 4


@pytest.fixture(scope="module")
def scripts(load_scripts: Any) -> dict[str, Any]:
    return load_scripts(*NAMES)


@pytest.fixture
def job(tmp_path: Path, tiny_llama: Path, scripts: dict[str, Any]) -> dict[str, Any]:
    args = scripts["race"].arguments("", []).parse_args(["--batch", str(BATCH), "--tokens", "600"])
    args.model = str(tiny_llama)
    return {**scripts["race"].job_of(args, tmp_path), "clip": 1e9, "layers": 2}


def chosen(scripts: dict[str, Any], job: dict[str, Any], *, policy: bool, pairs: int = STEPS * BATCH) -> Any:
    rows = scripts["side_rows"]
    return rows.choose(rows.read_pairs(None, "pku"), job, pairs, policy=policy)


def trained(training: Any, scripts: dict[str, Any], folder: Path) -> tuple[list[float], list[Tensor]]:
    folder.mkdir()
    with scripts["sides"].Watch(folder / "gradients.pt") as watch:
        losses = training()
    assert watch.steps == len(losses)
    return losses, torch.load(folder / "gradients.pt")


def test_in_32_bits_gradients_and_losses_are_those_of_trl(
    tmp_path: Path, scripts: dict[str, Any], job: dict[str, Any]
) -> None:
    chosen(scripts, job, policy=True)
    found = {}
    for side in ("equipoise", "trl", "trl best"):
        place = tmp_path / side
        training = scripts["preference"].training_of(side, {**job, "folder": str(place)})
        found[side] = trained(training, scripts, place)
    losses, gradients = found.pop("equipoise")
    assert len(losses) == STEPS
    for theirs, their_gradients in found.values():
        assert losses[0] == pytest.approx(theirs[0], rel=1e-4)
        assert losses == pytest.approx(theirs, rel=1e-3)
        difference = scripts["race"].gradient_difference(gradients, their_gradients)
        assert difference["all"] < 1e-4
        assert difference["worst_tensor"] < 1e-4


def test_the_upper_half_of_a_policy_begins_with_the_same_loss(
    tmp_path: Path, scripts: dict[str, Any], job: dict[str, Any]
) -> None:
    rows = chosen(scripts, job, policy=True, pairs=2 * BATCH).rows
    found = {}
    for side in ("equipoise", "equipoise top"):
        training = scripts["preference"].training_of(side, {**job, "folder": str(tmp_path / side)})
        found[side] = trained(training, scripts, tmp_path / side)
    (losses, gradients), (whole, _) = found["equipoise top"], found["equipoise"]
    assert len(losses) == 2
    assert losses == pytest.approx(whole, rel=1e-5)
    assert len(gradients) == 9  # of one llama layer
    # 1 of 2 layers: the lower one once, the upper one for the reference, and three times in each epoch
    body, head = (scripts["side_rows"].forward_flop(job["model"], rows, head=h) for h in (False, True))
    needed = scripts["side_rows"].top_flop(job["model"], rows, 3, policy=True)
    assert needed == pytest.approx(body * (0.5 + 0.5 * 10) + (head - body) * 7)


@pytest.mark.parametrize("side", ["equipoise", "equipoise top", "equipoise frozen", "trl", "trl best"])
def test_every_side_of_the_scorer_trains(
    tmp_path: Path, scripts: dict[str, Any], job: dict[str, Any], side: str
) -> None:
    chosen(scripts, job, policy=False, pairs=2 * BATCH)
    training = scripts["scorer"].training_of(side, {**job, "folder": str(tmp_path / "work")})
    losses, _ = trained(training, scripts, tmp_path / "work")
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)


class Plain:
    """The log-probabilities of TRL's own kernel in the type of the model; the kernel sums in 32 bits."""

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, bias: None, labels: Tensor, *_: Any) -> tuple[Tensor, ...]:
        logps = torch.log_softmax(hidden @ weight.T, dim=-1)
        picked = logps.gather(-1, labels[:, None]).squeeze(-1)
        none = torch.zeros_like(picked)  # what it logs beside
        return picked, none, none, none, none.bool()


def wide(folder: Path) -> Any:
    """The model in 64 bits throughout; its own norms would compute in 32, backward too."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__ == "LlamaRMSNorm":
                plain = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                plain.load_state_dict(norm.state_dict())
                setattr(parent, name, plain)
    return model.double()


def test_in_64_bits_with_plain_descent_losses_and_weights_are_those_of_trl(
    tmp_path: Path,
    tiny_llama: Path,
    scripts: dict[str, Any],
    job: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a reference in 64 bits too; what a training keeps of it has 32, as TRL's has."""
    chosen(scripts, job, policy=True)
    job = {**job, "lr": 0.05, "folder": str(tmp_path / "trl")}
    policy, losses = our_descent(tiny_llama, job, tmp_path)

    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", Plain)
    theirs: list[float] = []

    class Noted(trl.DPOTrainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            theirs.append(loss.item())
            return loss

    settings = scripts["sides"].trl_settings(job, best=False, bf16=False)
    other = wide(tiny_llama)
    Noted(
        model=other,
        ref_model=wide(tiny_llama),
        args=trl.DPOConfig(**settings, beta=0.1, optim="sgd"),
        train_dataset=pytest.importorskip("datasets").Dataset.from_list(scripts["sides"].texts_of(job)),
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
    ).train()
    assert abs(losses[-1] - losses[0]) > 0.01  # it has learned something
    assert losses == pytest.approx(theirs, rel=1e-8)
    for (name, mine), their in zip(policy.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-8, atol=1e-10, msg=name)


def our_descent(model: Path, job: dict[str, Any], folder: Path) -> tuple[Any, list[float]]:
    """Our trainer with another optimiser than it offers; the loss of each step in 64 bits."""
    policy = wide(model)
    pair_settings = PairSettings(objective="dpo", preference="safer", max_tokens=job["longest"])
    pairs = list(read_records(Path(job["pairs"]), Pair))
    ordered: list[OrderedPair]
    ordered, _ = order_pairs(load_tokenizer(model), pairs, pair_settings, 0)
    with torch.no_grad():
        reference = [response_logps(policy, [one.row]).sums for one in ordered]
    steps: list[list[Tensor]] = []
    task: Task = pair_task(PreferenceLosses(policy, dpo, 0.1), ordered, reference)
    task = task._replace(before_step=lambda *_: steps.append([]))
    task.model.register_forward_hook(lambda _, __, found: steps[-1].append(found.detach()))
    settings = OptimSettings(
        lr=job["lr"],
        batch_size=BATCH,
        tokens_per_micro_batch=job["tokens"],
        schedule="constant",
        warmup_fraction=0,
        clip_norm=job["clip"],
        device="cpu",
        checkpoint_every=10**6,
    )
    arguments = optim_arguments(settings, folder / "checkpoints", STEPS)
    arguments.optim = OptimizerNames.SGD
    _StepTrainer(task, settings, arguments, "descent").train()
    return policy, [float(torch.cat(found).sum()) / BATCH for found in steps]
