"""Answers on disk as they come in, so that none of them is asked for twice.

One line per answer, under a key that names what was asked. A line is on the disk before its answer
counts; what a kill leaves of a last line is cut off.
"""

import json
import os
from pathlib import Path
from threading import Lock
from typing import Any

from equipoise.errors import ConfigError

_BEGINNING = b'{"key": "'


class Journal:
    """A file that only grows: keys and JSON objects. What it holds stays on disk, not in memory."""

    def __init__(self, path: Path) -> None:
        """Find what is there, if anything; a line that cannot be read is as good as not there.

        Raises:
            ConfigError: the file is there and is something else.
        """
        self._path = path
        self._writing = Lock()
        self._places: dict[str, int] = {}
        """Where each key's line begins, bytes."""
        if path.exists():
            self._read()

    def _read(self) -> None:
        with self._path.open("r+b") as file:
            beginning = file.read(len(_BEGINNING))
            if beginning != _BEGINNING[: len(beginning)]:
                raise ConfigError(f"{self._path}: is no journal of answers; expected another place")
            file.seek(0)
            end = 0
            for line in file:
                if not line.endswith(b"\n"):
                    file.truncate(end)
                    break
                entry = _entry(line)
                if entry is not None:
                    self._places[entry["key"]] = end
                end += len(line)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return what was put under the key, or None."""
        if key not in self._places:
            return None
        with self._path.open("rb") as file:
            file.seek(self._places[key])
            entry = _entry(file.readline())
        return entry["value"] if entry is not None and entry["key"] == key else None

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Write the object under the key; it is on the disk when this returns. Threads may do so at once."""
        line = json.dumps({"key": key, "value": value}).encode() + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab", buffering=0) as file:
            with self._writing:
                file.write(line)
                end = file.tell()  # asked for after the write, since another process may write too
            os.fsync(file.fileno())
        self._places[key] = end - len(line)


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    is_ours = isinstance(entry, dict) and isinstance(entry.get("key"), str)
    return entry if is_ours and isinstance(entry.get("value"), dict) else None
