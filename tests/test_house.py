"""House rules that a linter does not know."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
SCRIPTS = [p for folder in ("benchmarks", "examples", "docs") for p in sorted((ROOT / folder).rglob("*.py"))]
LEFT_OVER = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name)
def test_a_file_is_understood_without_scrolling(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= (300 if path in SOURCES else 500)


@pytest.mark.parametrize("path", SOURCES + TESTS + SCRIPTS, ids=name)
def test_nothing_is_left_for_later(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not LEFT_OVER.search(text)
    raised = {node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Raise)}
    assert not any("NotImplementedError" in ast.dump(node) for node in raised)


@pytest.mark.parametrize("path", SOURCES + SCRIPTS, ids=name)
def test_an_except_says_which_error_it_expects(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name(path)}:{node.lineno}"
            caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            assert not caught & {"Exception", "BaseException"}, f"{name(path)}:{node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_a_module_opens_with_what_it_holds(path: Path) -> None:
    text = path.read_text("utf-8")
    if path.name == "__init__.py" and not text.strip():
        return
    first = (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]
    assert first.endswith((".", "?", ":")), first


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_every_test_can_fail(path: Path) -> None:
    checks = re.compile(r"\bassert\b|raises|assert_|\bwarns\b|check_\w+\(|expect\w*\(")
    text = path.read_text("utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            assert checks.search(ast.get_source_segment(text, node) or ""), f"{name(path)}: {node.name}"


def test_every_module_of_the_core_has_a_test_of_its_name() -> None:
    core = {p.stem for p in (ROOT / "src" / "equipoise").glob("[a-z]*.py")} - {"protocols"}  # types only
    assert {f"test_{stem}.py" for stem in core} <= {p.name for p in TESTS}


def test_the_readme_says_what_the_project_has_been_shown_to_work_for() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert "English" in text
    assert "single-turn" in text
