"""A benchmark's numbers say where they were measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "common")


def test_what_is_saved_says_machine_threads_commit_and_versions(tmp_path: Path) -> None:
    script = (
        "import common, pathlib, sys\n"
        "common.RESULTS = pathlib.Path(sys.argv[1])\n"
        "common.save('bread', {'seconds': 1.5})"
    )
    environment = {"PYTHONPATH": str(FOLDER), "OMP_NUM_THREADS": "3", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)
    found = json.loads((tmp_path / "bread.json").read_text("utf-8"))
    assert found["seconds"] == 1.5
    assert found["machine"].keys() == {"processor", "accelerator", "cores", "threads", "commit", "versions"}
    assert found["machine"]["threads"] == 3
    assert found["machine"]["versions"]["python"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_that_writes_results_saves_them_so(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "from common import" in text or "results" not in text
