"""A scorer, reward and cost in one run, against TRL's RewardTrainer run twice: tokens per processor second.

    python benchmarks/scorer.py --data DIR              pku_saferlhf_pairs.jsonl
    python benchmarks/scorer.py --data DIR --rows long  hh_harmless_test.jsonl: long prompts

Needs TRL 1.16. All sides train all weights of the same language model from the same start on the same pairs,
in the same steps of 8, in 32 bits; ours reads both responses behind one prompt and learns reward and cost,
its sign terms too, in one pass. TRL learns one score a run, so a side of it is two runs, times added; both
take the preference for the safer answer, which is no matter for the time. Peers, and bfloat16, as in
`preference.py`: batches of 8, and steps made of 8 batches of one pair, which are padded least.

Beside them stand two of ours that learn less: the upper half of the layers (`equipoise top`), on what the
lower half made once of every token, and the heads alone on a frozen model (`equipoise frozen`). What is
computed once is counted once in three epochs. They are other scorers, whose quality is measured elsewhere;
here is what they cost. The top's share of the arithmetic limit is of what it needs itself.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from race import EPOCHS, arguments, job_of, keep, race
from side_rows import Job, choose, forward_flop, read_pairs, top_flop, upper_half
from sides import Training, child, measure, our_losses, our_settings, texts_of, trl_settings, write_job

FROZEN, TOP = "equipoise frozen", "equipoise top"
OURS = ("equipoise", "equipoise bf16", TOP, FROZEN)
SIDES = ("trl", "trl best", *OURS, "trl best bf16")
PADDING = "<|endoftext|>"
"""What TRL pads with: it would take an end of turn for padding, and read the token before."""


def ours(job: Job, *, bf16: bool, tune: str) -> Training:
    """`equipoise train scorer`, from the settings to the saved scorer."""
    from equipoise.lineage import produce
    from equipoise.training.scorer import TRAIN_SCORER, ScorerConfig

    frozen = tune == "frozen"
    config = ScorerConfig.model_validate(
        {
            "pairs": [job["pairs"]],
            "backbone": job["model"],
            "trunk": "pooled" if frozen else "last",
            "tune": tune,
            "top_layers": upper_half(job["model"]),
            "hidden": 128 if frozen else 0,
            "layers": job["layers"],
            "on_contradiction": "keep",
            "optim": our_settings(job, bf16=bf16),
        }
    )
    out = Path(job["folder"]) / "scorer"

    def train() -> list[float]:
        produce(out, TRAIN_SCORER, config)
        return our_losses(out)

    return train


def by_trl(job: Job, *, best: bool, bf16: bool) -> Training:
    """One run of TRL's trainer, on the texts in the order of our steps."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(**trl_settings(job, best=best, bf16=bf16))

    def train() -> list[float]:
        tokenizer = AutoTokenizer.from_pretrained(job["model"])
        tokenizer.pad_token = PADDING
        texts = [{key: row["prompt"] + row[key] for key in ("chosen", "rejected")} for row in texts_of(job)]
        trainer = RewardTrainer(
            model=AutoModelForSequenceClassification.from_pretrained(
                job["model"], num_labels=1, dtype=torch.float32
            ),
            args=config,
            train_dataset=Dataset.from_list(texts),
            processing_class=tokenizer,
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return train


def training_of(side: str, job: Job) -> Training:
    bf16 = side.endswith("bf16")
    if side in OURS:
        return ours(job, bf16=bf16, tune={FROZEN: "frozen", TOP: "top"}.get(side, "full"))
    return by_trl(job, best="best" in side, bf16=bf16)


def both(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Runs one after the other as one: times and steps added, the larger memory."""
    added: dict[str, Any] = {
        name: [sum(parts) for parts in zip(*(run[name] for run in runs), strict=True)]
        for name in ("before", "during")
    }
    added["steps"] = sum(run["steps"] for run in runs)
    return {**runs[-1], **added, "own_mib": max(run["own_mib"] for run in runs)}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], SIDES)
    parser.add_argument("--layers", type=int, default=6, help="layers that the frozen scorer pools")
    args = parser.parse_args()
    if args.side:
        measure(training_of(args.side, json.loads(args.job.read_text("utf-8"))))
        return
    with tempfile.TemporaryDirectory() as folder:
        job = {**job_of(args, Path(folder)), "layers": args.layers}
        chosen = choose(read_pairs(args.data, args.rows), job, args.pairs, policy=False)

        def run(side: str) -> Any:
            times = 1 if side in OURS else 2
            return both([child(__file__, side, write_job(job, Path(folder))) for _ in range(times)])

        flop = forward_flop(job["model"], chosen.rows, head=False) * 3 * EPOCHS
        less = {TOP: top_flop(job["model"], chosen.rows, EPOCHS, policy=False)}
        result = race(args, job, chosen, run, sides=SIDES, ours=OURS, flop=flop, less=less)
    keep("scorer", args.rows if args.data else "built-in", result)
    print(json.dumps({name: result[name] for name in ("sides", "compared")}, indent=1))


if __name__ == "__main__":
    main()
