"""What the command ends with: exit codes, one line for a person, a traceback for a bug."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from equipoise import __version__
from equipoise.cli.main import main


class Ended(NamedTuple):
    code: object
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process, as the installed script does."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["equipoise", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        return Ended(left.value.code, *capsys.readouterr())

    return run


def check_one_line(ended: Ended, code: int, *words: str) -> None:
    assert ended.code == code
    assert ended.err.count("\n") == 1, ended.err
    assert ended.out == ""
    for word in words:
        assert word in ended.err


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"id": f"r{n}", "prompt": f"question {n}", "response": "bread", "is_safe": n % 2 == 0}
        for n in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def test_what_is_done_ends_with_0(call: Call, rows: Path) -> None:
    assert call("data", "check", rows).code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("dmo", "equipoise: no such command 'dmo' (did you mean 'demo'?)"),
        ("train gard", "equipoise train: no such command 'gard' (did you mean 'guard'?)"),
        ("data xyzzy", "equipoise data: no such command 'xyzzy'; see equipoise data --help"),
        ("--versoin", "equipoise: no such option: --versoin (did you mean '--version'?)"),
        ("data check --jsn a", "equipoise data check: no such option: --jsn (did you mean '--json'?)"),
        (
            "data check --fast",
            "equipoise data check: no such option: --fast; see equipoise data check --help",
        ),
        ("data check", "equipoise data check: missing argument 'files'; see equipoise data check --help"),
        ("data split a", "equipoise data split: missing option '--out'; see equipoise data split --help"),
        ("demo x", "equipoise demo: got unexpected extra argument(s) (x); see equipoise demo --help"),
        ("data check --out", "command line: option '--out' requires an argument"),
        (
            "data check a --on-contradiction kep",
            "equipoise data check: invalid value for '--on-contradiction': 'kep' is not one of "
            "'error', 'drop', 'flip', 'keep' (did you mean 'keep'?)",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(call: Call, arguments: str, says: str) -> None:
    assert call(*arguments.split()) == (2, "", f"error: {says}\n")


def test_a_wrong_value_is_one_line_and_2(call: Call) -> None:
    ended = call("data", "split", "a\nb", "--out", "c", "--seed", "many")
    check_one_line(ended, 2, "error: equipoise data split: invalid value for '--seed': ")
    check_one_line(call("demo", "a\nb"), 2, "unexpected extra argument")


@pytest.mark.parametrize("group", [[], ["data"], ["train"]])
def test_commands_without_a_word_and_help_show_the_help(call: Call, group: list[str]) -> None:
    shown = call(*group, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: {' '.join(['equipoise', *group])} [OPTIONS] COMMAND")
    assert call(*group) == (2, "", shown.out)


def test_the_version_is_printed(call: Call) -> None:
    assert call("--version") == (0, f"equipoise {__version__}\n", "")


def test_a_users_mistake_is_one_line_and_2(call: Call, rows: Path, tmp_path: Path) -> None:
    gone, out = tmp_path / "gone.jsonl", tmp_path / "out"
    check_one_line(call("data", "check", gone), 2, f"error: {gone}: no such file")
    check_one_line(call("run", gone, "--out", out), 2, f"error: {gone}: No such file")
    ended = call("train", "guard", "--data", rows, "--out", out, "--set", "optim.lrr=1")
    check_one_line(ended, 2, "error: command line: optim.lrr: no such setting (did you mean 'lr'?)")
    ended = call("train", "guard", "--data", gone, "--out", out)
    check_one_line(ended, 2, f"{gone}: no such file")
    ended = call("train", "guard", "--data", rows, "--out", out, "--set", "backbone=minillm")
    check_one_line(ended, 2, "no model 'minillm' (did you mean 'minilm'?)")
    assert not out.exists() or not list(out.iterdir())


def test_a_place_that_cannot_be_written_is_the_users_mistake(call: Call, rows: Path) -> None:
    ended = call("data", "split", rows, "--out", rows / "below a file")
    check_one_line(ended, 2, "below a file", "Not a directory")


def test_problems_in_data_are_listed_and_end_with_1(call: Call, rows: Path) -> None:
    with rows.open("a") as handle:
        handle.write('{"id": "r0", "prompt": "q", "response": "a", "is_safe": true, "severity": 2}\n')
    ended = call("data", "check", rows)
    assert ended.code == 1
    assert "rows.jsonl:9: severity: " in ended.out
    assert "rows.jsonl:9: id: stands already at" in ended.out


def test_a_run_that_cannot_go_on_ends_with_3(
    call: Call, rows: Path, tmp_path: Path, tiny_encoder: Path
) -> None:
    settings = (f"backbone={tiny_encoder}", "layers=2", "optim.lr=1e30", "optim.device=cpu")
    given = [word for setting in settings for word in ("--set", setting)]
    ended = call("train", "guard", "--data", rows, "--out", tmp_path / "out", *given)
    assert ended.code == 3
    last = ended.err.splitlines()[-1]
    assert last.startswith("stopped: step ")
    assert last.endswith("; the step was not taken; the same command resumes")


def test_a_full_disk_ends_with_3_and_the_same_command_goes_on(
    call: Call, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(file: int) -> None:
        if Path(f"/proc/self/fd/{file}").readlink().name == "merged.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "merged.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)  # where a file system that writes late says that it is full
        ended = call("data", "merge", rows, "--out", out)
    assert ended.code == 3
    assert ended.err.splitlines()[-1] == "stopped: disk: No space left on device; the same command resumes"
    assert not out.exists()
    assert call("data", "merge", rows, "--out", out).code == 0
    assert len(out.read_text("utf-8").splitlines()) == 8


BROKEN = """
import os, signal
from equipoise.cli.main import app, main

@app.command()
def bug(): return {}["key"]

@app.command()
def bug_of_the_system(): raise OSError("no file is named here")

@app.command()
def interrupted(): os.kill(os.getpid(), signal.SIGINT)

main()
"""


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BROKEN, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "last"),
    [("bug", "KeyError: 'key'"), ("bug-of-the-system", "OSError: no file is named here")],
)
def test_a_bug_keeps_its_traceback(command: str, last: str) -> None:
    done = script(command)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.splitlines()[-1] == last


def test_an_interrupt_ends_with_3() -> None:
    done = script("interrupted")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "stopped: interrupted; the same command resumes\n"


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "peft", "accelerate", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""

COMMANDS = [
    ["train", "guard"],
    ["train", "scorer"],
    ["train", "sft"],
    ["train", "preference"],
    ["run", "recipe.yaml"],
    ["demo"],
    ["evaluate", "--model", "m", "--guard", "g"],
    ["models", "install", "minilm"],
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line of an installation without the extra `train`."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(WITHOUT_TORCH)
    environment = {**os.environ, "PYTHONPATH": str(folder), "EQUIPOISE_CACHE": str(folder)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "equipoise", *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(words[:2]))
def test_a_command_that_needs_torch_says_which_extra_is_missing(
    bare: Callable[..., subprocess.CompletedProcess[str]], words: list[str]
) -> None:
    takes_out = words[0] in {"train", "evaluate"}
    done = bare(*words, *(["--out", "out"] if takes_out else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("needs the extra 'train': pip install 'equipoise[train]'\n")
    assert done.stderr.count("\n") == 1
    if words[0] == "train":
        assert done.stderr.startswith(f"error: equipoise {' '.join(words)} needs")


def test_data_needs_no_extra(bare: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    done = bare("data", "import", "builtin", "pairs", "--out", str(tmp_path / "pairs.jsonl"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "Pair"
