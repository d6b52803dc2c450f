"""How long `equipoise --help` takes, as a ratio to importing typer; medians of interleaved runs."""

import json
import statistics
import subprocess
import sys
import time

from common import save

RUNS = 15
COMMANDS = {
    "equipoise --help": [sys.executable, "-m", "equipoise", "--help"],
    "import typer": [sys.executable, "-c", "import typer"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(RUNS + 1):
        for name, command in COMMANDS.items():
            taken = seconds(command)
            if number:  # the first run warms the disk
                times[name].append(taken)
    medians = {name: round(statistics.median(values), 4) for name, values in times.items()}
    ours, theirs = (medians[name] for name in COMMANDS)
    result = {"seconds": medians, "ratio": round(ours / theirs, 2), "runs": RUNS}
    save("help", result)
    print(json.dumps(result["seconds"] | {"ratio": result["ratio"]}))


if __name__ == "__main__":
    main()
