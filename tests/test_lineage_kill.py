"""A run that is killed between any two lines of its bookkeeping is never taken for complete, and goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

# Runs in a process of its own with one thread, so that it may fork: each child is killed (exit without
# any clean-up) before the n-th line that it executes in lineage.py or files.py, until a child lives to
# the end.
SCRIPT = """
import os, shutil, sys
from pathlib import Path
from equipoise import files, lineage, machine
from equipoise.config import Config
from equipoise.errors import ConfigError

class Settings(Config):
    text: str

def build(config, run):
    target = run.out if WRITES_FILE else run.out / "sub" / "a.txt"
    lineage.write_text(target, config.text)
    if not WRITES_FILE:
        lineage.write_text(run.out / "b.txt", config.text)

os.fsync = lambda fd: None  # guards against a power cut, not a kill; without it this is five times faster
machine._PACKAGES = ()  # looking versions up is half of the time of so small a run
KIND, SITUATION = sys.argv[1:3]
CHANGES_FILES = {"produce", "_make", "_clear", "_empty", "_tidy"}
CHANGES_FILES |= {"write_text", "replacing", "only_one", "remove_leftovers"}
WRITES_FILE = KIND == "file"
STEP = lineage.Step("s", 1, build, writes_file=WRITES_FILE)
OUT = Path("place") / "out"

def go(text, force=False):
    return lineage.produce(OUT, STEP, Settings(text=text), force=force)

def child(kill_at):
    count = 0
    def trace(frame, event, arg):
        nonlocal count
        code = frame.f_code
        if code.co_filename not in (lineage.__file__, files.__file__) or code.co_name not in CHANGES_FILES:
            return None
        if event == "line":
            count += 1
            if count == kill_at:
                os._exit(9)
        return trace
    sys.settrace(trace)
    go("new", force=SITUATION == "over another")
    os._exit(0)

def contents():
    files = [OUT] if WRITES_FILE else [OUT / "sub" / "a.txt", OUT / "b.txt"]
    return {f.read_text() if f.is_file() else None for f in files}

kill_at, code = 0, 9
while code == 9:
    kill_at += 1
    shutil.rmtree("place", ignore_errors=True)
    if SITUATION == "over another":
        go("old")
    pid = os.fork()
    if pid == 0:
        child(kill_at)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9), (kill_at, code)
    manifest = lineage.manifest_of(OUT, is_file=WRITES_FILE)
    if manifest.exists():
        outcome = lineage.read_manifest(manifest)
        assert outcome.config["text"] == "old" or contents() == {"new"}, f"line {kill_at}: taken for complete"
    try:
        go("new")
    except ConfigError as refused:  # only the old run, still there, may stand in the way
        assert SITUATION == "over another" and "another run (s," in str(refused), f"line {kill_at}: {refused}"
        go("new", force=True)
    assert contents() == {"new"}, f"line {kill_at}: {contents()}"
    assert go("new").skipped, f"line {kill_at}: a complete run is made again"
    left = {str(p.relative_to("place")) for p in Path("place").rglob("*") if p.is_file()}
    own = ["out", "out.card.md", "out.manifest.json"]
    if not WRITES_FILE:
        own = [f"out/{name}" for name in ("sub/a.txt", "b.txt", "card.md", "config.yaml", "manifest.json")]
    assert left == set(own), f"line {kill_at}: left over: {sorted(left - set(own))}"
print(kill_at)
"""


@pytest.mark.parametrize("situation", ["alone", "over another"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_kill_at_any_line_is_made_good_by_the_same_command(
    tmp_path: Path, kind: str, situation: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, situation],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]
    assert int(done.stdout) > 110  # so many places to die at; fewer would mean the trace missed a module
