"""Files that are there whole or not at all, and folders in which one process works at a time."""

import errno
import fcntl
import glob
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from equipoise.progress import say

LOCK = ".lock"
"""The file that `only_one` holds while a process works in a folder."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
_RANDOM = "[a-z0-9_]" * 8
"""How the name of a temporary folder ends."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that takes the place of `path` at the end, whole or not at all.

    It has the name of `path` and lies in a folder of its own beside it, so that several writers do not
    meet: the last to end has the path. What a killed one leaves there is for `remove_leftovers`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"tmp.{path.name}.", dir=path.parent) as own:
        part = Path(own, path.name)
        yield part
        with part.open("rb") as handle:
            os.fsync(handle.fileno())
        part.chmod(_usual_mode(part.with_name(f"{path.name}.mode")))
        part.replace(path)


def usual_permissions(folder: Path) -> None:
    """Give weights in a folder the permissions of any new file; safetensors lets only their owner read."""
    with TemporaryDirectory(prefix="tmp.mode.", dir=folder) as own:
        mode = _usual_mode(Path(own, "mode"))
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def _usual_mode(fresh: Path) -> int:
    """Permissions that this process gives a new file; one is made for that, and is gone at once."""
    fresh.touch()
    mode = stat.S_IMODE(fresh.stat().st_mode)
    fresh.unlink()
    return mode


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as part:
        part.write_text(text, "utf-8")


def hash_file(path: Path) -> str:
    """Sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def remove_leftovers(path: Path) -> None:
    """Remove what killed writers of a file left, or of all in a folder; nobody may be writing them now."""
    if path.is_dir():
        left = list(path.rglob(f"tmp.*.{_RANDOM}/"))
    else:
        left = list(path.parent.glob(f"tmp.{glob.escape(path.name)}.{_RANDOM}/"))
    for folder in left:
        shutil.rmtree(folder)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder, which is made if it is not there; the others wait.

    The system frees the lock of a killed process. At the end the lock's file is gone, and the folder too
    where nothing is in it. A file system that knows no locks lets everyone in.
    """
    lock, held = folder / LOCK, None
    with ExitStack() as stack:
        while held is None or not _is_at(held, lock):  # it was removed by the one who had it
            _make(folder)
            with suppress(FileNotFoundError):  # the folder went with it
                held = stack.enter_context(lock.open("ab"))
                _wait_for(held, folder)
        try:
            yield
        finally:
            if _is_at(held, lock):
                lock.unlink()
            with suppress(OSError):  # it is not empty, or gone
                folder.rmdir()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:  # it was there, and its last user has removed it since
        if folder.is_file():
            raise


def _wait_for(lock: IO[bytes], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"{folder}: another process is at work there; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as exc:
        if exc.errno not in _NO_LOCKS:
            raise


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one that lies at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
