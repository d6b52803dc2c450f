"""Processes that make the same place at the same time: one makes it, and the others find it made."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.config import Config
from equipoise.errors import ConfigError
from equipoise.lineage import Run, Step, hash_file, manifest_of, produce, read_manifest

# Makes `out`. A build tells that it has begun and waits for a line, so that a second one that were let in
# would write beside it.
SCRIPT = """
import json, sys
from pathlib import Path
from equipoise.config import Config
from equipoise.lineage import Step, produce, write_text

class Settings(Config):
    text: str

def build(config, run):
    print("building", flush=True)
    write_text(run.scratch / "begun", "")
    sys.stdin.readline()
    if WRITES_FILE:
        write_text(run.out, config.text)
    else:
        with (run.out / "log.txt").open("a") as log:
            log.write(config.text)

kind, text = sys.argv[1:]
WRITES_FILE = kind == "file"
outcome = produce(Path("out"), Step("s", 1, build, writes_file=WRITES_FILE), Settings(text=text))
print(json.dumps({"skipped": outcome.skipped, "attempts": outcome.manifest.attempts}))
"""


def start(place: Path, kind: str, text: str = "made") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind, text],
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def starts_building(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"


def waits(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline().endswith(": another process is at work there; waiting for it\n")


def ends(process: "subprocess.Popen[str]") -> object:
    said, _ = process.communicate("go\n", timeout=60)
    assert process.returncode == 0, said
    return json.loads(said.splitlines()[-1])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_second_of_two_waits_and_finds_it_made(tmp_path: Path, kind: str) -> None:
    first = start(tmp_path, kind)
    starts_building(first)
    second = start(tmp_path, kind)
    waits(second)
    assert ends(first) == {"skipped": False, "attempts": 1}
    assert ends(second) == {"skipped": True, "attempts": 1}
    is_file = kind == "file"
    made = tmp_path / "out" if is_file else tmp_path / "out" / "log.txt"
    assert made.read_text("utf-8") == "made"
    manifest = read_manifest(manifest_of(tmp_path / "out", is_file=is_file))
    assert manifest.outputs[made.name] == hash_file(made)
    names = {p.name for p in (tmp_path if is_file else tmp_path / "out").iterdir()}
    left = {"out", "out.card.md", "out.manifest.json"}
    assert names == (left if is_file else {"card.md", "config.yaml", "log.txt", "manifest.json"})


def test_the_second_goes_on_where_a_killed_one_stopped(tmp_path: Path) -> None:
    first = start(tmp_path, "folder")
    starts_building(first)
    second = start(tmp_path, "folder")
    waits(second)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    assert ends(second) == {"skipped": False, "attempts": 2}


def test_other_settings_wait_too_and_are_refused_then(tmp_path: Path) -> None:
    first = start(tmp_path, "file")
    starts_building(first)
    second = start(tmp_path, "file", "other")
    waits(second)
    assert ends(first) == {"skipped": False, "attempts": 1}
    said, _ = second.communicate("go\n", timeout=60)
    assert "out: holds another run (s, other settings or inputs)" in said
    assert (tmp_path / "out").read_text("utf-8") == "made"


def test_a_file_in_the_place_of_a_folder_is_refused_though_forced(tmp_path: Path) -> None:
    def never(config: Config, run: Run) -> None:
        raise AssertionError("there is no folder to build in")

    (tmp_path / "out").write_text("mine", "utf-8")
    for force in (False, True):
        with pytest.raises(ConfigError, match="out: exists and is no run of equipoise"):
            produce(tmp_path / "out", Step("s", 1, never), Config(), force=force)
    assert (tmp_path / "out").read_text("utf-8") == "mine"
