"""A small recipe on data, and the file it stands in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.config import to_yaml

Recipe = dict[str, Any]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twenty exchanges, safe and unsafe."""
    path = tmp_path / "rows.jsonl"
    lines = [
        {"id": f"r{n}", "prompt": f"question {n}", "response": f"answer {n} bread", "is_safe": n % 2 == 0}
        for n in range(20)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def data(rows: Path) -> Recipe:
    """Three steps on data: two files, then a folder; `lone` is needed by nobody."""
    return {
        "name": "small",
        "settings": {"seed": 3, "stratify": False, "part": "train", "shares": {"train": 0.5, "test": 0.5}},
        "steps": {
            "rows": {"run": "data.check", "with": {"files": [str(rows)]}},
            "lone": {"run": "data.merge", "with": {"files": ["${builtin.pairs}"]}},
            "all": {
                "run": "data.merge",
                "with": {"files": ["${steps.rows}", "${builtin.exchanges}"]},
                "file": "merged.jsonl",
            },
            "parts": {
                "run": "data.split",
                "with": {
                    "files": ["${steps.all}"],
                    "fractions": "${settings.shares}",
                    "seed": "${settings.seed}",
                    "stratify": "${settings.stratify}",
                },
            },
        },
        "publish": {"half.jsonl": "${steps.parts}/${settings.part}/merged.jsonl"},
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Recipe], Path]:
    def to_file(recipe: Recipe) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(to_yaml(recipe), "utf-8")
        return path

    return to_file
