"""Optional packages: the table is that of pyproject, and a missing one is one line."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from equipoise.errors import MissingExtraError
from equipoise.extras import EXTRAS, missing, require

PYPROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_what_pyproject_installs(extra: str) -> None:
    requirements = PYPROJECT["project"]["optional-dependencies"][extra]
    named = [re.split(r"[><=\[]", r)[0].replace("-", "_") for r in requirements]
    assert named == list(EXTRAS[extra])


def test_what_is_installed_is_not_missing() -> None:
    assert missing("train") == []
    require("training", "train")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert missing("train") == ["peft"]
    with pytest.raises(MissingExtraError, match=r"^training needs the extra 'train': pip install"):
        require("training", "train")
