"""What the pages say is run: code blocks, command lines, recipes, examples, generated tables."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`(equipoise [^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
UsageError = typer.BadParameter.__mro__[1]  # of the click that this typer carries


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, *languages: str) -> list[tuple[int, str]]:
    """Return line number and content of the code blocks in one of the languages."""
    found = [match for match in BLOCK.finditer(text) if match[1] in languages]
    return [(text[: match.start(2)].count("\n"), match[2]) for match in found]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    text = page.read_text("utf-8")
    found = blocks(text, "python")
    assert len(found) == text.count("```python"), "a block that is not closed, or that stands in a list"
    for line, block in found:
        exec(compile("\n" * line + block, str(page), "exec"), namespace)


def command_lines(text: str) -> list[str]:
    """Return every `equipoise ...` command that a page shows, in blocks and in running text."""
    lines = [match[1] for match in INLINE.finditer(text)]
    for _, block in blocks(text, "bash", "sh", "console"):
        joined = block.replace("\\\n", " ")
        for part in re.split(r"\n|&&|;|\|", joined):
            line = part.strip().removeprefix("$ ")
            if re.match(r"(\S*/)?equipoise\s", line):
                lines.append(line)
    return lines


def check_command(line: str) -> None:
    """Find the command and check its options and how many arguments it gets; nothing is run."""
    from equipoise.cli.main import app

    words = shlex.split(re.sub(r"\s>+\s*\S+", "", line), comments=True)[1:]
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="equipoise")
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{line}: no command '{words[0]}'"
        command = command.commands[words.pop(0)]
        context = command.context_class(command, info_name=command.name, parent=context)
    if words in ([], ["--help"], ["..."]):  # the command is named and not called
        return
    values, too_many, _ = command.make_parser(context).parse_args(list(words))
    assert not too_many, f"{line}: does not take {too_many}"
    for param in command.params:
        assert not param.required or values.get(param.name), f"{line}: lacks {param.opts[0]}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_command_lines_name_commands_and_options_that_exist(page: Path) -> None:
    for line in command_lines(page.read_text("utf-8")):
        check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        "equipoise dmo",
        "equipoise data chek a.jsonl",
        "equipoise demo --ot x",
        "equipoise demo --out",
        "equipoise demo a b c",
    ],
)
def test_a_wrong_command_line_would_be_found(line: str) -> None:
    with pytest.raises((AssertionError, UsageError)):
        check_command(line)


def test_command_lines_are_found_in_every_form() -> None:
    text = (
        "Run `equipoise demo` or:\n```bash\n# first\nmake setup && .venv/bin/equipoise doctor\n"
        "$ equipoise data check \\\n  a.jsonl\nequipoise score --in a | head\n```\n"
        "```python\nequipoise = 1\n```\n"
    )
    assert [line.split() for line in command_lines(text)] == [
        ["equipoise", "demo"],
        [".venv/bin/equipoise", "doctor"],
        ["equipoise", "data", "check", "a.jsonl"],
        ["equipoise", "score", "--in", "a"],
    ]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{name(page)}: {target}"


RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_recipe_of_the_demo_is_there() -> None:
    assert "quickstart" in [path.stem for path in RECIPES]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_loads(path: Path) -> None:
    from equipoise.pipeline.recipe import load_recipe

    assert load_recipe(path).steps


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def takes_models(path: Path) -> bool:
    return any(model in path.read_text("utf-8") for model in ("smollm2-135m", "minilm"))


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if takes_models(p) else [], id=p.stem) for p in EXAMPLES],
)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_make_targets_are_those_that_the_help_lists() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^  make (\S+)", done.stdout, re.MULTILINE)
    text = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    assert sorted(listed) == sorted(phony[1].split())
