"""Potato's server as a process of its own, on this machine only."""

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from equipoise.annotation.environment import own_environment
from equipoise.annotation.potato import CONFIG, LOG
from equipoise.annotation.project import read_project
from equipoise.errors import ConfigError, RunStoppedError

HOST = "127.0.0.1"
_SECONDS_TO_START, _SECONDS_TO_STOP = 180.0, 10.0


class Server(NamedTuple):
    """A server that answers."""

    url: str
    process: subprocess.Popen[bytes]


def expect_potato(folder: Path) -> None:
    """Raise ConfigError where a folder was exported for another tool, DataError where it is no project."""
    tool = read_project(folder).tool
    if tool != "potato":
        raise ConfigError(f"{folder}: was exported for {tool}, which is not started from here")


@contextmanager
def serving(folder: Path, python: Path, port: int | None = None) -> Iterator[Server]:
    """Start Potato on an exported folder, wait until it answers, and stop it at the end with its children.

    Args:
        folder: What `annotate export --to potato` wrote.
        python: The Python of Potato's environment.
        port: Where it listens; None = a free one.

    Raises:
        ConfigError: the folder is no Potato project, or the port is taken.
        RunStoppedError: Potato ended before it answered.
    """
    expect_potato(folder)
    port = _free_port(port)
    log = folder / LOG
    command = [str(python), "-m", "potato", "start", CONFIG, "--port", str(port), "--host", HOST]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=own_environment() | {"PYTHONNOUSERSITE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own group: Ctrl-C reaches us, and we stop all of it
        )
    try:
        _wait_until_it_answers(process, port, log)
        yield Server(f"http://{HOST}:{port}/", process)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own group, and all of the group."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(_SECONDS_TO_STOP)
    with suppress(ProcessLookupError):  # what outlived it, or did not listen
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port(wanted: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except OSError as exc:
            raise ConfigError(f"--port {wanted}: {exc.strerror}; expected a free one, or none") from exc
        return int(probe.getsockname()[1])


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    give_up = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise RunStoppedError(f"potato ended with {process.returncode} before it answered; see {log}")
        connection = http.client.HTTPConnection(HOST, port, timeout=5)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status < 500:
                return
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
        finally:
            connection.close()
    raise RunStoppedError(f"potato did not answer within {_SECONDS_TO_START:.0f} s; see {log}")
