"""What several benchmarks share: where their numbers were measured, and which prompts are set aside."""

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equipoise.machine import processor, versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "processor": processor(),
        "accelerator": accelerator(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "commit": commit.stdout.strip(),
        "versions": versions(),
    }


def accelerator() -> str | None:
    """Name of the GPU that a trainer would take, if there is one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Write `results/NAME.json`: the result, and under `machine` what it was measured on."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        json.dumps({"machine": machine(), **result}, indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    return path


def is_set_aside(prompt: str) -> bool:
    """Whether a prompt is of the half, by hash, not read while requests and questions were written."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 2 == 1
