"""The README's commands are run in their order, as they stand, with tiny models and small sizes."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from equipoise.cli.main import main
from equipoise.data.corpus import corpus
from equipoise.records import Pair

ROOT = Path(__file__).parents[1]
BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_OURS = ("make demo", "make test", "pip install ")
"""Other programs; `make` targets are checked in test_docs.py."""

HEADS = ["layers=2", "hidden=8", "optim.epochs=1"]
SMALL_JUDGES = [f"steps.{name}.{size}" for name in ("guard", "scorer") for size in ("layers=2", "hidden=8")]
SMALL: dict[str, list[str]] = {
    "train guard": HEADS,
    "train scorer": HEADS,
    "train preference": ["max_pairs=4", "max_tokens=2000", "lora.rank=2"],
    "evaluate": ["max_new_tokens=2", "harmful=4", "benign=4"],
    "run": [
        *SMALL_JUDGES,
        "judge.depth=2",
        "steps.scorer.optim.epochs=1",
        *(
            f"steps.{name}.{size}"
            for name in ("base", "aligned")
            for size in ("max_new_tokens=2", "harmful=4")
        ),
        "steps.policy.max_tokens=2000",  # a tiny tokenizer needs many
        "max_pairs=4",
    ],
}
"""Command -> `--set` that makes it small; nothing else of a line is changed."""


def lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in the README's bash blocks, comments left out."""
    for block in BASH.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def small(words: list[str]) -> list[str]:
    settings = next((SMALL[name] for name in SMALL if " ".join(words[1:]).startswith(f"{name} ")), [])
    return [*words, *(word for setting in settings for word in ("--set", setting))]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tiny_encoder: Path) -> Path:
    """A reader's folder: the checkout's recipes, rows of the reader's own, the models under their names."""
    for name, folder in (("smollm2-135m", tiny_llama), ("minilm", tiny_encoder)):
        installed = tmp_path / "cache" / "models" / name
        shutil.copytree(folder, installed)
        (installed / "source.json").write_text("{}", "utf-8")
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "here"
    shutil.copytree(ROOT / "recipes", here / "recipes")
    row = {"id": "r1", "prompt": "How do I bake bread?", "response": "Mix flour and water, then wait."}
    (here / "rows.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    (here / "DATA").mkdir()
    pairs = [pair for pair in corpus("pairs") if isinstance(pair, Pair)]
    for part, name in enumerate(
        ("pku_saferlhf_mini", "pku_saferlhf_pairs", "pandalm_test", "alpaca_eval_gpt4")
    ):
        text = "".join(pair.model_dump_json(exclude_none=True) + "\n" for pair in pairs[part::4])
        (here / "DATA" / f"{name}.jsonl").write_text(text, "utf-8")
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], None]:
    """Run one line as the installed command does; an exit code other than 0 fails with what it said."""

    def run(words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", small(words))
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr()
        assert left.value.code == 0, f"{' '.join(words)}: {said.err[-1000:]}{said.out[-1000:]}"

    return run


def test_the_commands_run_one_after_the_other(home: Path, shell: Callable[[list[str]], None]) -> None:
    ran = []
    for words in lines((ROOT / "README.md").read_text("utf-8")):
        if words[0] == "equipoise":
            shell(words)
            ran.append(" ".join(words[1:3]))
        else:
            assert " ".join(words).startswith(NOT_OURS), words
    assert {"train guard", "train preference", "compare base", "run recipes/pku-saferlhf-small.yaml"} <= set(
        ran
    )
    for made in ("judged.jsonl", "report.html", "runs/pku/report.html", "runs/pku/manifest.json"):
        assert (home / made).is_file(), made


def test_the_demo_runs(home: Path, shell: Callable[[list[str]], None]) -> None:
    sizes = [*SMALL_JUDGES, *(f"steps.{name}.optim.epochs=1" for name in ("guard", "scorer"))]
    sizes += [f"steps.{name}.max_new_tokens=2" for name in ("base", "aligned")] + [
        "steps.policy.max_pairs=4",
        "steps.policy.max_tokens=2000",
    ]
    shell(["equipoise", "demo", *(word for size in sizes for word in ("--set", size))])
    assert (home / "runs" / "quickstart" / "report.html").is_file()
    assert (home / "runs" / "quickstart" / "card.md").is_file()


def test_a_block_that_does_not_run_would_be_found(home: Path, shell: Callable[[list[str]], None]) -> None:
    text = "```bash\nequipoise data check \\\n  nothing-here.jsonl  # a file that no line before made\n```\n"
    (words,) = lines(text)
    assert words == ["equipoise", "data", "check", "nothing-here.jsonl"]
    with pytest.raises(AssertionError, match=r"nothing-here\.jsonl: no such file"):
        shell(words)
    assert os.listdir(home / "DATA")
