"""One process at a time works in a folder; who may read what is written."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from equipoise.files import LOCK, only_one, usual_permissions
from equipoise.models.checkpoints import save_tensors

HOLDER = """
import sys, time
from pathlib import Path
from equipoise.files import only_one

with only_one(Path("folder")):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(place: Path) -> "subprocess.Popen[str]":
    """A process that works in `folder`, until it is told a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def enter(folder: Path, let_in: threading.Event) -> threading.Thread:
    def work() -> None:
        with only_one(folder):
            let_in.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("end", ["done", "killed"])
def test_the_second_waits_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str], end: str) -> None:
    first, let_in = holder(tmp_path), threading.Event()
    second = enter(tmp_path / "folder", let_in)
    assert not let_in.wait(0.2)
    if end == "done":
        first.communicate("go\n", timeout=30)
    else:
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=30)
    assert let_in.wait(30)
    second.join(30)
    waits = f"{tmp_path / 'folder'}: another process is at work there; waiting for it\n"
    assert capfd.readouterr().err == waits
    assert not (tmp_path / "folder").exists()


def test_never_two_at_a_time_though_the_folder_comes_and_goes(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(50):
            with only_one(tmp_path / "folder"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 200
    assert set(most) == {1}
    assert not (tmp_path / "folder").exists()


def test_what_was_made_stays_and_only_the_lock_goes(tmp_path: Path) -> None:
    with only_one(tmp_path / "deep" / "folder"):
        (tmp_path / "deep" / "folder" / "made").write_text("")
        assert sorted(os.listdir(tmp_path / "deep" / "folder")) == [LOCK, "made"]
    assert os.listdir(tmp_path / "deep" / "folder") == ["made"]


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("mine", "utf-8")
    with pytest.raises(FileExistsError), only_one(tmp_path / "folder"):
        pass


def test_a_file_system_without_locks_lets_everyone_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> Any:
        def flock(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    with only_one(tmp_path / "folder"), only_one(tmp_path / "folder"):
        assert (tmp_path / "folder").is_dir()
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"), only_one(tmp_path / "folder"):
        pass


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_may_be_read_by_whoever_may_read_a_new_file(tmp_path: Path, umask: int, mode: int) -> None:
    tensors = {"a": torch.zeros(2)}
    before = os.umask(umask)
    try:
        save_tensors(tmp_path / "own.safetensors", tensors)
        (tmp_path / "encoder").mkdir()
        save_file(tensors, tmp_path / "encoder" / "others.safetensors")
        usual_permissions(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*.safetensors")}
    assert modes == {"own.safetensors": mode, "others.safetensors": mode}
    assert not list(tmp_path.glob("tmp.*"))
