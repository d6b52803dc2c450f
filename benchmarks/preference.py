"""DPO, full fine-tune, against TRL's DPOTrainer: data tokens per processor second, memory, same numbers.

    python benchmarks/preference.py --data DIR                  pku_saferlhf_pairs.jsonl
    python benchmarks/preference.py --data DIR --rows long      hh_harmless_test.jsonl: long prompts
    python benchmarks/preference.py --data DIR --equal          gradients and 20 steps, not timed

Needs TRL 1.16. Both sides train in 32 bits on the same pairs in the same steps of 8, a token of data being
one of a prompt (once) or of one of its two responses. Peers: TRL as it is used (a batch of 8, the reference
beside the policy), and TRL's best setting that runs on a CPU: the reference's log-probabilities computed
before, and a step made of 8 batches of one pair, which are padded least (`group_by_length` with batches of 8
computes more tokens; `padding_free` is off in 1.16, and its kernels want an accelerator). Gradient
checkpointing is off everywhere. Where the processor has bfloat16, both train in it too.

One epoch is measured; the rates are for three, and count the reference once where it is computed before.

Beside them stands our training of the upper half of the layers (`tune: top`): what the lower half makes of
every token is computed once, and counted once. It is another training, whose result is measured elsewhere;
here is what it costs. Its share of the arithmetic limit is of what it needs itself.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from race import EPOCHS, about, arguments, gradient_difference, job_of, keep, largest_difference, race
from side_rows import Job, choose, forward_flop, read_pairs, top_flop, upper_half
from sides import Training, child, measure, our_losses, our_settings, texts_of, trl_settings, write_job

TOP = "equipoise top"
OURS = ("equipoise", "equipoise bf16", TOP)
SIDES = ("trl", "trl best", *OURS, "trl best bf16")
EQUAL = {"pairs_taken": 40, "batch": 2, "epochs": 1, "clip": 1e9, "gradients": True}
"""20 steps of two pairs, gradients as they are."""


def ours(job: Job, *, bf16: bool, top: bool) -> Training:
    """`equipoise train preference`, from the settings to the saved policy."""
    from equipoise.lineage import produce
    from equipoise.training.preference import TRAIN_PREFERENCE, PreferenceConfig

    config = PreferenceConfig.model_validate(
        {
            "pairs": [job["pairs"]],
            "model": job["model"],
            "objective": "dpo",
            "preference": "safer",
            "tune": "top" if top else "full",
            "top_layers": upper_half(job["model"]),
            "max_tokens": job["longest"],
            "keep_reference": False,
            "optim": our_settings(job, bf16=bf16),
        }
    )
    out = Path(job["folder"]) / "policy"

    def train() -> list[float]:
        produce(out, TRAIN_PREFERENCE, config)
        return our_losses(out)

    return train


def by_trl(job: Job, *, best: bool, bf16: bool) -> Training:
    """TRL's trainer, on the texts in the order of our steps."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        **trl_settings(job, best=best, bf16=bf16),
        loss_type="sigmoid",
        beta=0.1,
        precompute_ref_log_probs=best,
    )

    def train() -> list[float]:
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list(texts_of(job)),
            processing_class=AutoTokenizer.from_pretrained(job["model"]),
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return train


def training_of(side: str, job: Job) -> Training:
    bf16 = side.endswith("bf16")
    if side in OURS:
        return ours(job, bf16=bf16, top=side == TOP)
    return by_trl(job, best="best" in side, bf16=bf16)


def timed(args: argparse.Namespace, folder: Path) -> None:
    """Time all sides in turns."""
    job = job_of(args, folder)
    chosen = choose(read_pairs(args.data, args.rows), job, args.pairs, policy=True)

    def run(side: str) -> Any:
        return child(__file__, side, write_job(job, folder))

    flop = forward_flop(job["model"], chosen.rows) * (1 + 3 * EPOCHS)  # the reference once
    less = {TOP: top_flop(job["model"], chosen.rows, EPOCHS, policy=True)}
    result = race(args, job, chosen, run, sides=SIDES, ours=OURS, flop=flop, less=less)
    keep("preference", args.rows if args.data else "built-in", result)
    print(json.dumps({name: result[name] for name in ("sides", "compared")}, indent=1))


def equal(args: argparse.Namespace, folder: Path) -> None:
    """Compare the gradients of the first step, and the losses of 20."""
    job = {**job_of(args, folder), **EQUAL}
    chosen = choose(read_pairs(args.data, args.rows), job, job["pairs_taken"], policy=True)
    losses: dict[str, list[float]] = {}
    gradients = {}
    for side in ("equipoise", "trl"):
        path = write_job(job, folder)
        losses[side] = child(__file__, side, path)["losses"]
        gradients[side] = torch.load(path.parent / "gradients.pt")
    differences = {
        "first_loss": largest_difference(losses["equipoise"][:1], losses["trl"][:1]),
        "first_gradient": gradient_difference(gradients["equipoise"], gradients["trl"]),
        "losses": largest_difference(losses["equipoise"], losses["trl"]),
    }
    result = {**about(args, job, chosen), "steps": len(losses["trl"]), "relative_difference": differences}
    result["curves"] = {side: [round(loss, 8) for loss in curve] for side, curve in losses.items()}
    keep("preference", "equality", result)
    print(json.dumps(differences, indent=1))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], SIDES)
    parser.add_argument("--equal", action="store_true", help="compare gradients and losses instead of times")
    args = parser.parse_args()
    if args.side:
        job = json.loads(args.job.read_text("utf-8"))
        place = Path(job["folder"]) / "gradients.pt" if job.get("gradients") else None
        measure(training_of(args.side, job), place)
        return
    with tempfile.TemporaryDirectory() as folder:
        (equal if args.equal else timed)(args, Path(folder))


if __name__ == "__main__":
    main()
