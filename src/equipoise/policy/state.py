"""All that an online training goes on from: weights, optimiser, multipliers, groups, how far its files are.

A checkpoint is a folder that counts once it is sealed with the hash of each of its files. Random numbers
are not in it: they are functions of the run's seed and the update's number.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from equipoise.errors import ModelError
from equipoise.lineage import write_text
from equipoise.models.checkpoints import last_sealed, seal
from equipoise.models.roles import Roles
from equipoise.policy.group_weights import GroupWeights
from equipoise.policy.lagrangian import Multiplier
from equipoise.policy.ranks import rank, wait

_KEPT = 2


class Journal:
    """A file of JSON lines that grows, and is cut back to where a checkpoint was."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is made with the first line."""
        self.path = path

    def write(self, *entries: Mapping[str, Any]) -> None:
        """Add lines."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)

    def size(self) -> int:
        """Return how many bytes are on the disk."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def lines(self) -> list[dict[str, Any]]:
        """Return what was written."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def cut(self, size: int) -> None:
        """Forget what comes behind `size` bytes.

        Raises:
            ModelError: The file is shorter.
        """
        found = self.path.stat().st_size if self.path.exists() else 0
        if found < size:
            raise ModelError(f"{self.path}: has {found} bytes; expected {size}, as the checkpoint knows it")
        if found:
            os.truncate(self.path, size)


class Keeper:
    """Keeps checkpoints of a run in a folder, and brings the last whole one back."""

    def __init__(
        self,
        folder: Path,
        roles: Roles,
        optimizer: torch.optim.Optimizer,
        multiplier: Multiplier,
        journals: Mapping[str, Journal],
        *,
        groups: GroupWeights | None = None,
    ) -> None:
        """Hold what is kept; all processes see the folder, and the first one writes."""
        self.folder = folder
        self.roles = roles
        self.optimizer = optimizer
        self.multiplier = multiplier
        self.journals = journals
        self.groups = groups

    def save(self, done: int) -> None:
        """Keep the state after `done` updates, if it is not kept yet."""
        if rank() == 0 and not (self.folder / f"checkpoint-{done}").exists():
            self._write(self.folder / f"checkpoint-{done}", done)
        wait()

    def _write(self, place: Path, done: int) -> None:
        place.mkdir(parents=True)
        self.roles.save(place / "trained.safetensors")
        torch.save(self.optimizer.state_dict(), place / "optimizer.pt")
        state = {
            "done": done,
            "multiplier": self.multiplier.state_dict(),
            "journals": {name: journal.size() for name, journal in self.journals.items()},
        }
        if self.groups is not None:
            state["groups"] = self.groups.state_dict()
        write_text(place / "state.json", json.dumps(state))
        seal(place)
        for old in sorted(self.folder.glob("checkpoint-*"), key=_number)[:-_KEPT]:
            shutil.rmtree(old)

    def restore(self) -> int:
        """Bring the last whole checkpoint back, and return how many updates were done; 0 without one."""
        found = last_sealed(self.folder) if self.folder.exists() else None
        wait()
        done = 0 if found is None else _number(found)
        if rank() == 0 and self.folder.exists():
            for stale in self.folder.glob("checkpoint-*"):
                if found is None or _number(stale) > done:
                    shutil.rmtree(stale)
        sizes = dict.fromkeys(self.journals, 0)
        if found is not None:
            self.roles.restore(found / "trained.safetensors")
            optimizer = torch.load(found / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(optimizer)
            state = json.loads((found / "state.json").read_text("utf-8"))
            self.multiplier.load_state_dict(state["multiplier"])
            if self.groups is not None:
                self.groups.load_state_dict(state["groups"])
            sizes = state["journals"]
        if rank() == 0:
            for name, journal in self.journals.items():
                journal.cut(sizes[name])
        return done


def _number(folder: Path) -> int:
    return int(folder.name.split("-")[-1])
