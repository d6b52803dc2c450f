"""`killed_in.py NAME CALL WORDS...`: `equipoise WORDS`, kill -9 in the CALLth call of `policy.state.NAME`."""

import os
import signal
import sys


def main(name: str, call: int, words: list[str]) -> None:
    from equipoise.cli.main import main as equipoise
    from equipoise.policy import state

    begun, real = 0, getattr(state, name)

    def die(*args: object) -> object:
        nonlocal begun
        begun += 1
        if begun == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(state, name, die)
    sys.argv = ["equipoise", *words]
    equipoise()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
