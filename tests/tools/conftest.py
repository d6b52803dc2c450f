"""The programs that tests marked `tools` run: installed in environments of their own, ended by their id."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

collect_ignore = ["fill_cards.py", "serve_gguf.py"]  # run in environments of their own

HERE = Path(__file__).parent
TOKEN = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = {
    "COLLECT_ANALYTICS": "False",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "LATEST_VERSION_CHECK": "false",
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
}
Serve = Callable[[Path], AbstractContextManager[dict[str, Any]]]
Fill = Callable[[dict[str, Any]], dict[str, Any]]
Call = Callable[..., Any]


def installed(name: str) -> Path:
    """Python of the environment that the lock of that name describes."""
    from equipoise.annotation.environment import install_tool
    from equipoise.models.builtin import cache_folder

    lock = HERE / f"{name.replace('-', '_')}.lock"
    return install_tool(cache_folder(), name, lock.read_text("utf-8"))


@pytest.fixture(scope="session")
def fill_cards() -> Fill:
    """Fill cards in a browser, see `fill_cards.py`; skips where Chromium or its driver is not installed."""
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install chromium chromium-driver")
    python = installed("selenium")

    def fill(task: dict[str, Any]) -> dict[str, Any]:
        command, given = [python, str(HERE / "fill_cards.py")], json.dumps(task)
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen: dict[str, Any] = json.loads(done.stdout)
        return seen

    return fill


@pytest.fixture(scope="session")
def serve() -> Serve:
    """`equipoise annotate serve` as a process, ended with Ctrl-C."""

    @contextmanager
    def serving(project: Path) -> Iterator[dict[str, Any]]:
        command = [sys.executable, "-m", "equipoise", "annotate", "serve", str(project), "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                yield json.loads(process.stdout.readline())
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=60) == 0
            finally:
                process.terminate()  # ends its Potato too

    return serving


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Start Label Studio on an empty data folder; yields a function that calls its REST interface."""
    from equipoise.annotation.environment import own_environment
    from equipoise.annotation.serve import stop

    python, folder = installed("label-studio"), tmp_path_factory.mktemp("label-studio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--no-browser", "--port", str(port), "--internal-host", "127.0.0.1"]
    account = ["--username", "ann@example.org", "--password", "a-password-1", "--user-token", TOKEN]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [python.with_name("label-studio"), "start", *options, *account],
            env=own_environment() | OFFLINE | {"LABEL_STUDIO_BASE_DATA_DIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def call(method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    try:
        give_up = time.monotonic() + 1800  # its first start migrates a database
        while True:
            assert process.poll() is None, (folder / "server.log").read_text("utf-8")
            try:
                call("GET", "/api/projects")
                break
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < give_up
                time.sleep(1)
        yield call
    finally:
        stop(process)
