"""One of two processes of a test: train until what is held out says stop, and write the number learned."""

import sys
from pathlib import Path

import torch


def main(out: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from test_held_out import Number, run_in, settings, task

    from equipoise.training.trainer import fit

    model = Number()
    log = fit(task(model), settings(tokens_per_micro_batch=1), run_in(out / "run"), label="test")
    found = torch.stack([model.number.detach(), torch.tensor(float(log[-1]["step"]))])
    torch.save(found, out / f"found-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
