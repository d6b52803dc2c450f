"""One of two processes of a test: take one step and write the gradient that the optimiser saw."""

import sys
from pathlib import Path

import torch


def main(out: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from test_trainer import Squares, kept_gradients, run_in, settings, task

    from equipoise.training.trainer import fit

    with kept_gradients() as kept:
        fit(task(Squares()), settings(tokens_per_micro_batch=9), run_in(out / "run"), label="test")
    torch.save(kept[0], out / f"gradient-{torch.distributed.get_rank()}.pt")
    torch.distributed.barrier()  # a process that leaves earlier can take the other down
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
