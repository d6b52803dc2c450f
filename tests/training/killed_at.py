"""`killed_at.py STEP WORDS...`: `equipoise WORDS`, and kill -9 as the step after STEP is to be taken."""

import os
import signal
import sys

from torch.optim.optimizer import register_optimizer_step_pre_hook


def main(last: int, words: list[str]) -> None:
    from equipoise.cli.main import main as equipoise

    taken = 0

    def die(*_: object) -> None:
        nonlocal taken
        taken += 1
        if taken > last:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_pre_hook(die)
    sys.argv = ["equipoise", *words]
    equipoise()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
