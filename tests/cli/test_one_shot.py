"""`equipoise one-shot` as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.errors import DataError


def test_scored_responses_become_pairs(tell: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    rows = [
        {"id": f"p{p}", "prompt": f"ask {p}", "response": f"{p} {k}", "reward": float(k), "cost": k - 0.5}
        for p in range(3)
        for k in range(2)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    words = ("one-shot", "--scored", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    found = tell(*words, "--set", "budget=-0.1", "--set", "beta=1")
    assert (found["pairs"], found["prompts"], found["constraint"]) == (3, 3, "active")
    assert found["cost_expected"] == pytest.approx(-0.1, abs=1e-6)
    with pytest.raises(DataError, match=r"budget: got -9, but the cheapest responses cost -0.5"):
        tell(*words, "--set", "budget=-9", "--force")
