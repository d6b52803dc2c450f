"""`peak_of_a_training.py MODEL GIB OUT`: train on pairs and say what memory it took beside libraries, in MiB.

GIB 0 stands for no budget.
"""

import sys
from pathlib import Path


def memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main(model: str, gib: float, out: Path) -> None:
    import torch

    from equipoise.data.io import write_records
    from equipoise.lineage import produce
    from equipoise.records import Answer, Pair
    from equipoise.training.preference import TRAIN_PREFERENCE, PreferenceConfig, PreferenceOptim

    torch.set_num_threads(1)
    pairs = [
        Pair(
            id=str(i),
            prompt="how do i bake bread " * 4,
            answers=(
                Answer(response="mix flour and water " * (10 + i)),
                Answer(response="wait until the dough has doubled " * 8),
            ),
            better=0,
        )
        for i in range(8)
    ]

    def train(place: Path, chosen: list[Pair], budget: float | None) -> None:
        place.mkdir()
        write_records(place / "pairs.jsonl", chosen)
        optim = PreferenceOptim(device="cpu", lr=1e-4, batch_size=8, tokens_per_micro_batch=100_000)
        config = PreferenceConfig(
            pairs=(place / "pairs.jsonl",),
            model=model,
            objective="simpo",
            tune="full",
            max_tokens=2000,
            optim=optim.model_copy(update={"memory_gib": budget}),
        )
        produce(place / "out", TRAIN_PREFERENCE, config)

    small = [Pair(id="0", prompt="a", answers=(Answer(response="b"), Answer(response="c")), better=0)]
    train(out / "first", small, None)  # what is loaded on the way counts as libraries
    Path("/proc/self/clear_refs").write_text("5", "utf-8")
    before = memory("VmRSS")
    train(out / "second", pairs, gib or None)
    sys.stdout.write(f"{memory('VmHWM') - before}\n")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
