"""One of the processes of a test: take one step of KTO and write its gradient and its baseline."""

import os
import sys
from pathlib import Path

import torch


def main(model: Path, out: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from test_preference_invariance import Step
    from test_trainer import kept_gradients, run_in, settings

    from equipoise.training.trainer import fit

    rank = os.environ["RANK"]
    (out / rank).mkdir()
    step = Step(model, out / rank, "kto")
    with kept_gradients() as kept:
        fit(step.task, settings(tokens_per_micro_batch=100), run_in(out / "run"), label="test")
    torch.save({"gradient": kept[0], "baseline": step.task.model.baseline}, out / f"step-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
