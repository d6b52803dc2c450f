"""Starting and stopping a server, with a small stand-in program. The real Potato: tests/tools."""

import os
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from equipoise.annotation.card import make_card
from equipoise.annotation.environment import install_tool, own_environment, potato_requirements
from equipoise.annotation.potato import LOG
from equipoise.annotation.project import write_project
from equipoise.annotation.serve import serving
from equipoise.errors import ConfigError, DataError, RunStoppedError
from equipoise.taxonomy import load_taxonomy

SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("child", "w").write(str(child.pid))
open("arguments", "w").write(" ".join(sys.argv[1:]))
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def program(folder: Path, source: str) -> Path:
    """An executable that is called as the Python of a tool's environment."""
    (folder / "program.py").write_text(source, "utf-8")
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder / "program.py"}" "$@"\n', "utf-8")
    path.chmod(0o755)
    return path


def project(folder: Path, tool: str = "potato") -> Path:
    write_project(folder / "project", tool, make_card("dual", load_taxonomy("pku19")), [])  # type: ignore[arg-type]
    return folder / "project"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a killed process whose parent has not asked for it yet
    return not stat.exists() or stat.read_text("utf-8").rpartition(")")[2].split()[0] != "Z"


def test_it_answers_on_a_free_port_of_this_machine_and_ends_with_its_children(tmp_path: Path) -> None:
    folder = project(tmp_path)
    with serving(folder, program(tmp_path, SERVER)) as server:
        with urllib.request.urlopen(server.url, timeout=10) as page:
            assert page.status == 200
        assert server.url.startswith("http://127.0.0.1:")
        child = int((folder / "child").read_text("utf-8"))
        assert is_alive(child)
        arguments = (folder / "arguments").read_text("utf-8").split()
        assert arguments[:4] == ["-m", "potato", "start", "potato.yaml"]
        assert arguments[-2:] == ["--host", "127.0.0.1"]
    assert server.process.returncode is not None
    give_up = time.monotonic() + 5
    while is_alive(child) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not is_alive(child)


def test_a_server_that_ends_at_once_is_said_with_its_log(tmp_path: Path) -> None:
    folder = project(tmp_path)
    with (
        pytest.raises(RunStoppedError, match=rf"potato ended with 3 before it answered; see .*{LOG}"),
        serving(folder, program(tmp_path, "import sys; print('why'); sys.exit(3)")),
    ):
        pass
    assert "why" in (folder / LOG).read_text("utf-8")


def test_a_taken_port_and_a_wrong_folder_are_refused_before_anything_starts(tmp_path: Path) -> None:
    python = program(tmp_path, SERVER)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with (
            pytest.raises(ConfigError, match=r"--port \d+: Address already in use"),
            serving(project(tmp_path), python, other.getsockname()[1]),
        ):
            pass
    with (
        pytest.raises(ConfigError, match=r"was exported for label-studio"),
        serving(project(tmp_path, "label-studio"), python),
    ):
        pass
    with pytest.raises(DataError, match=r"no project of"), serving(tmp_path, python):
        pass
    assert not (tmp_path / "project" / "child").exists()


def test_every_package_of_potato_is_pinned() -> None:
    _, wheels_only, *lines = potato_requirements().splitlines()
    assert wheels_only == "--only-binary :all:"
    assert "potato-annotation==2.12.1" in lines
    assert all(line.count("==") == 1 for line in lines)
    assert not any(line.startswith("equipoise") for line in lines)


def test_an_environment_is_made_once_and_again_where_it_is_not_what_is_asked_for(tmp_path: Path) -> None:
    python = install_tool(tmp_path, "tool", "# nothing\n")
    assert (tmp_path / "tools" / "tool") in python.parents
    (tmp_path / "tools" / "tool" / "mark").write_text("kept", "utf-8")
    assert install_tool(tmp_path, "tool", "# nothing\n") == python
    assert (tmp_path / "tools" / "tool" / "mark").exists()
    with pytest.raises(RunStoppedError, match=r"^tool: .*gone"):
        install_tool(tmp_path, "tool", f"{tmp_path / 'gone.whl'}\n")
    assert not (tmp_path / "tools" / "tool" / "mark").exists()


def test_a_tool_does_not_inherit_our_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "here")
    monkeypatch.setenv("HOME", "there")
    assert "PYTHONPATH" not in own_environment()
    assert own_environment()["HOME"] == "there"
