"""Progress: nothing is lost on the way, results stay off stdout, a terminal gets a bar."""

import os
import pty
import subprocess
import sys

import pytest

from equipoise import progress


def test_every_item_comes_through_and_short_work_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(["a", "b", "c"], "reading")) == ["a", "b", "c"]
    assert list(progress.track((i for i in range(3)), "counting", total=3)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_long_work_writes_lines_to_stderr(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    assert list(progress.track([7, 8], "judging")) == [7, 8]
    assert list(progress.track(iter([7]), "reading")) == [7]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["judging: 1/2 after 0 s", "judging: 2/2 after 0 s", "reading: 1 after 0 s"]


def test_a_bar_goes_on_from_what_was_done_before(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress.bar("training", total=10, done=7) as advance:
        advance()
    assert capfd.readouterr().err == "training: 8/10 after 0 s\n"


def test_a_loop_may_stop_early() -> None:
    for item in progress.track(iter(range(1000)), "looking"):
        if item == 2:
            break
    assert item == 2


def test_an_error_in_the_work_passes_through() -> None:
    with pytest.raises(KeyError):
        list(progress.track(({}[key] for key in "a"), "failing"))


def test_say_writes_one_line_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    progress.say("half way")
    assert capfd.readouterr() == ("", "half way\n")


def test_a_terminal_gets_a_bar_and_stdout_the_result_only() -> None:
    master, slave = pty.openpty()
    code = "from equipoise.progress import track; print(sum(track(range(5), 'adding')))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=slave,
        check=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(slave)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert done.stdout == b"10\n"
    assert "adding" in shown


def test_what_is_done_in_silence_shows_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress.silent():
        assert list(progress.track([7], "judging")) == [7]
    assert capfd.readouterr().err == ""
    assert list(progress.track([7], "judging")) == [7]
    assert capfd.readouterr().err != ""
