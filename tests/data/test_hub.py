"""Data sets on the hub that cannot be had: one line that says what was tried and how a file is given."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def imported(origin: str, folder: Path) -> subprocess.CompletedProcess[str]:
    places = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "equipoise",
        "data",
        "import",
        "pku-saferlhf",
        origin,
        "--out",
        "x.jsonl",
    ]
    return subprocess.run(
        command, env=os.environ | places, capture_output=True, text=True, check=False, cwd=folder
    )


def test_a_hub_id_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    done = imported("nobody/nothing", tmp_path)
    tried, error = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert tried == "nobody/nothing: no such file here; asking the hub of data sets"
    assert error.startswith("error: nobody/nothing: no such file here, and not to be had from the hub: ")
    assert error.endswith("(a file of your own is given by its path, such as ./rows.jsonl)")
    assert not list(tmp_path.glob("x.jsonl*"))


@pytest.mark.parametrize("origin", ["nothing", "no/such/folder", "./nobody/nothing", "rows.jsonl"])
def test_a_name_that_is_no_hub_id_is_a_missing_file(tmp_path: Path, origin: str) -> None:
    done = imported(origin, tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: path: {Path(origin)}: no such file or folder\n"
