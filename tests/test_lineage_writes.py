"""Files are there whole or not at all."""

import errno
import gzip
import json
from pathlib import Path

import pytest

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
