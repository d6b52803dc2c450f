"""Tools in environments of their own, in the cache: installed once, exactly as listed, never imported."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

from equipoise.errors import RunStoppedError
from equipoise.lineage import write_text
from equipoise.progress import say

_DONE = "installed.sha256"
_NOT_INHERITED = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}


def potato_requirements() -> str:
    """Return the requirements of the Potato that the exports are written for, all with their versions."""
    return (resources.files("equipoise") / "annotation" / "potato.lock").read_text("utf-8")


def install_tool(cache: Path, name: str, requirements: str) -> Path:
    """Make the environment of a tool unless it is there; return its Python.

    An environment that a kill left half-made, or that was made from other requirements, is made again.

    Args:
        cache: Folder of everything that can be made again.
        name: Of the tool.
        requirements: As pip reads them, everything that is needed with its version; nothing else is fetched.

    Raises:
        RunStoppedError: the environment could not be made, or pip could not bring the packages.
    """
    folder = cache / "tools" / name
    python = folder / "bin" / "python"
    wanted = hashlib.sha256(f"{sys.version_info[:2]}\n{requirements}".encode()).hexdigest()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:  # the system frees the lock of a killed one
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / _DONE
        if done.is_file() and done.read_text("utf-8") == wanted:
            return python
        shutil.rmtree(folder, ignore_errors=True)
        say(f"installing {name} into {folder}, once")
        _run(name, [sys.executable, "-m", "venv", "--without-pip", str(folder)])
        listed = folder / "requirements.txt"
        write_text(listed, requirements)
        options = ["--no-deps", "--no-input", "--disable-pip-version-check"]
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
        _run(name, [*pip, *options, "-r", str(listed)])
        write_text(done, wanted)
    return python


def own_environment() -> dict[str, str]:
    """Return our environment variables without those that would mix our packages into a tool's."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own_environment())
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise RunStoppedError(f"{name}: {lines[-1] if lines else f'ended with {done.returncode}'}")
