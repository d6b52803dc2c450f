"""Files are there whole or not at all."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from equipoise.files import remove_leftovers
from equipoise.lineage import replacing, write_text


def write_half(target: Path, error: BaseException) -> None:
    """Begin to write `target` and be stopped by `error`."""
    with replacing(target) as part:
        part.write_text("half", "utf-8")
        raise error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_no_target_and_no_rest(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "new" / "file.txt"
    with pytest.raises(type(error)):
        write_half(target, error)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    write_text(target, "old")
    with pytest.raises(OSError, match="No space"):
        write_half(target, OSError(errno.ENOSPC, "No space left on device"))
    assert [(p.name, p.read_text("utf-8")) for p in tmp_path.iterdir()] == [("file.txt", "old")]


def test_the_target_does_not_exist_before_the_end(tmp_path: Path) -> None:
    target = tmp_path / "rows.jsonl.gz"
    with replacing(target) as part:
        assert part.suffix == target.suffix
        with gzip.open(part, "wt") as rows:
            rows.write(json.dumps({"a": 1}))
        assert not target.exists()
    with gzip.open(target, "rt") as rows:
        assert json.loads(rows.read()) == {"a": 1}


def test_of_two_writers_of_one_path_each_writes_it_whole(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    with replacing(target) as one, one.open("w", encoding="utf-8") as first:
        first.write("one, ")
        first.flush()
        with replacing(target) as two:
            two.write_text("two", "utf-8")
        assert target.read_text("utf-8") == "two"
        first.write("and all of it")
    assert target.read_text("utf-8") == "one, and all of it"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


WRITER = """
import sys
from pathlib import Path
from equipoise.files import write_text

print("ready", flush=True)
sys.stdin.readline()
for _ in range(200):
    write_text(Path("file.txt"), sys.argv[1] * 50_000)
"""


def test_processes_that_write_one_path_do_not_take_each_others_file(
    tmp_path: Path, at_once: Callable[[str, Sequence[str]], list[str]]
) -> None:
    at_once(WRITER, ["a", "b"])
    assert (tmp_path / "file.txt").read_text("utf-8") in {"a" * 50_000, "b" * 50_000}
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


KILLED = """
import os, signal
from pathlib import Path
from equipoise.files import replacing

begun = [replacing(Path(name)) for name in ("rows.jsonl", "rows.jsonl.gz", "sub/deep.txt")]
for one in begun:
    one.__enter__().write_text("half", "utf-8")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_writer_leaves_is_not_its_file_and_is_removed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob("tmp.rows.jsonl.????????")
    other = next(tmp_path.glob("tmp.rows.jsonl.gz.*"))
    assert not (tmp_path / "rows.jsonl").exists()
    remove_leftovers(tmp_path / "rows.jsonl")
    assert not left.exists()
    assert other.exists()  # of another file, whose writer may live
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["sub"]
    assert os.listdir(tmp_path / "sub") == []
