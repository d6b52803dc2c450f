"""Who may import whom, and what must never be loaded along the way. The table is that of the design."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import equipoise

ROOT = Path(equipoise.__file__).parent
CORE = {
    "errors",
    "files",
    "taxonomy",
    "records",
    "protocols",
    "config",
    "lineage",
    "machine",
    "manifests",
    "stats",
    "progress",
    "extras",
    "engines",
}
MODELS = {"models", "objectives", "data", "batch", "generation"} | CORE
WITHOUT_TRAINING = {
    "curation",
    "synthesis",
    "annotation",
    "moderation",
    "rewards",
    "judges",
    "defences",
    "redteam",
}
MAY_IMPORT: dict[str, set[str]] = {
    **{name: CORE for name in CORE},
    "data": CORE,
    "batch": CORE | {"data"},  # one module: rows in, rows out, for the layers below that do so
    "curation": CORE | {"data"},
    "synthesis": CORE | {"data", "curation"},
    "annotation": CORE | {"data", "curation"},
    "objectives": set(),
    "models": CORE | {"objectives"},
    "generation": CORE | {"models", "batch"},
    "training": CORE | {"data", "models", "objectives"},
    "moderation": MODELS,
    "rewards": MODELS,
    "judges": MODELS | {"moderation", "rewards"},
    "policy": MODELS | {"training", "rewards"},
    "defences": CORE | {"moderation", "generation"},
    "redteam": CORE | {"data", "generation", "rewards", "moderation", "judges", "defences"},
    "evaluation": MODELS | WITHOUT_TRAINING,
}
LAYERS = MAY_IMPORT.keys() | {"pipeline", "doctor", "cli"}
MAY_IMPORT["pipeline"] = LAYERS - {"cli", "doctor"}
MAY_IMPORT["doctor"] = CORE | {"models"}
MAY_IMPORT["cli"] = set(LAYERS)

NO_TORCH = CORE | {"batch", "data", "curation", "synthesis", "annotation"}
HEAVY = {"torch", "transformers", "peft", "accelerate", "tokenizers", "datasets"}
FILES = sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    """Return `data.io` for `data/io.py`, `data` for `data/__init__.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def imported(nodes: list[ast.AST], path: Path) -> set[str]:
    """Absolute names of all that is imported, under TYPE_CHECKING and inside functions too."""
    package = ["equipoise", *path.relative_to(ROOT).parent.parts]
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return names


def layers_of(names: set[str]) -> set[str]:
    """Our own layers among the imported names; `equipoise.__version__` is none."""
    ours = {name.split(".")[1] for name in names if name.startswith("equipoise.")}
    return {name for name in ours if not name.startswith("__")}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    names = imported(list(ast.walk(ast.parse(path.read_text("utf-8")))), path)
    if layer == "__init__":
        assert not layers_of(names)
        return
    if layer == "__main__":
        layer = "cli"
    assert layer in MAY_IMPORT, f"{layer} is no layer of the design"
    assert layers_of(names) - {layer} <= MAY_IMPORT[layer]
    third = {name.split(".")[0] for name in names}
    if layer in NO_TORCH - {"data"}:
        assert not third & HEAVY
    if layer == "data":  # the hub's library reads a hub id; it loads no torch (see below)
        assert not third & (HEAVY - {"datasets"})
    if layer == "objectives":
        assert third <= sys.stdlib_module_names | {"torch", "equipoise"}


@pytest.mark.parametrize(
    ("source", "where", "expected"),
    [
        ("import equipoise.training.trainer", "data/io.py", {"training"}),
        ("from equipoise import cli, __version__", "data/io.py", {"cli"}),
        ("from ..policy import ppo", "data/io.py", {"policy"}),
        ("from . import rows", "data/io.py", {"data"}),
        ("from .sources import pku", "data/sources/__init__.py", {"data"}),
        ("def f():\n    from equipoise.models.heads import Head", "data/io.py", {"models"}),
        ("if TYPE_CHECKING:\n    from equipoise.judges import Guard", "data/io.py", {"judges"}),
        ("importlib.import_module('equipoise.redteam')", "data/io.py", {"redteam"}),
        ("import equipoised.data, os", "data/io.py", set()),
    ],
)
def test_the_reader_of_imports_sees_every_form(source: str, where: str, expected: set[str]) -> None:
    assert layers_of(imported(list(ast.walk(ast.parse(source))), ROOT / where)) == expected


def loaded_after(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter has loaded after the statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "layer", sorted(NO_TORCH & {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in FILES})
)
def test_records_in_records_out_loads_no_torch_also_not_through_a_dependency(layer: str) -> None:
    modules = [module_name(p) for p in FILES if module_name(p).split(".")[0] == layer]
    loaded = loaded_after("\n".join(f"import equipoise.{name}" for name in modules))
    assert {f"equipoise.{name}" for name in modules} <= loaded
    assert not loaded & {"torch", "transformers"}


LIGHT = {"errors", "extras"}  # the standard library is all that they import
CLI = [path for path in FILES if path.relative_to(ROOT).parts[0] == "cli"]


@pytest.mark.parametrize("path", CLI, ids=module_name)
def test_a_command_module_imports_nothing_heavy_at_its_top(path: Path) -> None:
    names = imported(list(ast.parse(path.read_text("utf-8")).body), path)
    ours = {name for name in names if name.startswith("equipoise")}
    assert layers_of(ours) <= {"cli", *LIGHT}
    assert {name.split(".")[0] for name in names - ours} <= sys.stdlib_module_names | {"typer"}


def test_the_command_line_loads_only_itself_and_typer() -> None:
    loaded = loaded_after("import equipoise.cli.main")
    assert layers_of(loaded) <= {"cli", *LIGHT}
    assert not loaded & {"pydantic", "numpy", "ruamel.yaml", "sklearn", "pyarrow", "jinja2", *HEAVY}
