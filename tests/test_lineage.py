"""Runs: what is skipped, resumed, redone or refused, and what names the same content."""

import os
import shutil
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from equipoise.config import Config, InputPath, IsAside, IsLater, ModelRef, find_inputs, read_yaml
from equipoise.errors import ConfigError, DataError, RunStoppedError
from equipoise.lineage import (
    Outcome,
    Run,
    Step,
    content_hash,
    identify,
    manifest_of,
    produce,
    read_manifest,
    write_text,
)
from equipoise.machine import versions


class Pace(Config):
    workers: Annotated[int, Field(ge=1), IsAside()] = 1
    rounds: int = 1


class Files(Config):
    train: InputPath | None = None
    more: tuple[InputPath, ...] = ()
    named: dict[str, InputPath] = {}


class Settings(Config):
    data: InputPath | None = None
    files: Files = Files()
    model: ModelRef = "minilm"
    pace: Pace = Pace()
    times: int = 2
    place: Path = Path("not/an/input")


def build(config: Settings, run: Run) -> None:
    """Repeat the input text; say how often in the notes."""
    text = config.data.read_text("utf-8") if config.data else "nothing"
    write_text(run.out / "sub" / "text.txt", text * config.times)
    run.notes["times"] = config.times
    run.licences |= {"MIT", "CC0-1.0"}


def build_file(config: Settings, run: Run) -> None:
    write_text(run.out, "x" * config.times)


STEP = Step("repeat", 1, build)
FILE_STEP = Step("repeat-file", 1, build_file, writes_file=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.txt"
    path.write_text("abc", "utf-8")
    return path


def text_of_run(out: Path) -> str:
    return (out / "sub" / "text.txt").read_text("utf-8")


def never(config: Settings, run: Run) -> None:
    raise AssertionError("this run was complete and must not be built again")


def test_a_run_leaves_its_settings_its_manifest_and_nothing_half_made(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "deep" / "out"
    outcome = produce(out, STEP, Settings(data=data))
    assert not outcome.skipped
    assert sorted(p.name for p in out.iterdir()) == ["card.md", "config.yaml", "manifest.json", "sub"]
    manifest = read_manifest(manifest_of(out, is_file=False))
    assert manifest == outcome.manifest
    assert list(manifest.outputs) == ["card.md", "sub/text.txt"]
    assert (manifest.step, manifest.step_version, manifest.attempts) == ("repeat", 1, 1)
    assert manifest.licences == ["CC0-1.0", "MIT"]
    assert manifest.notes == {"times": 2}
    assert manifest.inputs["data"].path == str(data)
    assert manifest.inputs["data"].sha256 == content_hash(data)
    assert manifest.versions == versions()
    assert manifest.peak_memory_mib > 1
    assert Settings.model_validate(read_yaml(out / "config.yaml")) == Settings(data=data)


def test_the_same_inputs_are_skipped(tmp_path: Path, data: Path) -> None:
    first = produce(tmp_path / "out", STEP, Settings(data=data))
    again = produce(tmp_path / "out", STEP._replace(build=never), Settings(data=data))
    assert again == Outcome(first.manifest, skipped=True)


def test_a_setting_that_changes_nothing_of_what_comes_out_may_differ(tmp_path: Path) -> None:
    first = produce(tmp_path / "out", STEP, Settings(pace=Pace(workers=4)))
    assert first.manifest.config["pace"] == {"workers": 4, "rounds": 1}
    assert produce(tmp_path / "out", STEP._replace(build=never), Settings()).skipped
    with pytest.raises(ConfigError, match="holds another run"):
        produce(tmp_path / "out", STEP, Settings(pace=Pace(rounds=2)))


class Since(Pace):
    extra: Annotated[Files | None, IsLater()] = None


def test_a_setting_that_came_later_leaves_runs_without_it_their_identity() -> None:
    before, since = identify(STEP, Pace()).key, identify(STEP, Since()).key
    assert before == since
    assert identify(STEP, Since(extra=Files())).key != before


def test_inputs_that_moved_are_still_the_same(tmp_path: Path, data: Path) -> None:
    produce(tmp_path / "out", STEP, Settings(data=data))
    moved = tmp_path / "elsewhere" / "renamed.txt"
    moved.parent.mkdir()
    data.rename(moved)
    os.utime(moved, (1, 1))
    assert produce(tmp_path / "out", STEP._replace(build=never), Settings(data=moved)).skipped


@pytest.mark.parametrize("change", ["settings", "content", "model", "version", "step"])
def test_another_run_in_the_place_is_refused_and_replaced_only_when_forced(
    tmp_path: Path, data: Path, change: str
) -> None:
    out = tmp_path / "out"
    config, step = Settings(data=data), STEP
    produce(out, step, config)
    if change == "settings":
        config = Settings(data=data, times=3)
    elif change == "content":
        data.write_text("other", "utf-8")
    elif change == "model":
        config = Settings(data=data, model="smollm2-135m")
    else:
        step = STEP._replace(version=2) if change == "version" else STEP._replace(name="other")
    with pytest.raises(ConfigError, match=r"out: holds another run \(repeat, .* or give --force$"):
        produce(out, step, config)
    assert text_of_run(out) == "abcabc"
    assert not produce(out, step, config, force=True).skipped
    assert text_of_run(out) == data.read_text("utf-8") * config.times
    assert produce(out, step._replace(build=never), config).skipped


def test_forcing_removes_what_the_other_run_wrote(tmp_path: Path) -> None:
    def other(config: Settings, run: Run) -> None:
        write_text(run.out / "other.txt", "x")

    produce(tmp_path / "out", STEP, Settings())
    outcome = produce(tmp_path / "out", Step("other", 1, other), Settings(), force=True)
    assert list(outcome.manifest.outputs) == ["card.md", "other.txt"]
    assert not (tmp_path / "out" / "sub" / "text.txt").exists()


def test_a_place_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", "utf-8")
    (tmp_path / "file").write_text("mine", "utf-8")
    for force in (False, True):  # files that are not ours are never taken over
        with pytest.raises(ConfigError, match="out: is a folder with files that are no run of equipoise"):
            produce(tmp_path / "out", STEP, Settings(), force=force)
    with pytest.raises(ConfigError, match="file: exists and is no run of equipoise"):
        produce(tmp_path / "file", FILE_STEP, Settings())
    assert (tmp_path / "out" / "thesis.txt").read_text("utf-8") == "mine"
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_licences_follow_from_what_a_run_reads(tmp_path: Path) -> None:
    def gives(config: Settings, run: Run) -> None:
        (run.out / "rows.jsonl").write_text("{}", "utf-8")
        run.licences.add("CC-BY-NC-4.0")

    def takes(config: "Reads", run: Run) -> None:
        (run.out / "result").write_text("", "utf-8")
        run.licences.add("MIT")

    class Reads(Config):
        data: InputPath

    produce(tmp_path / "first", Step("gives", 1, gives), Settings())
    for number, place in enumerate((tmp_path / "first", tmp_path / "first" / "rows.jsonl")):
        made = produce(tmp_path / f"next{number}", Step("takes", 1, takes), Reads(data=place))
        assert made.manifest.licences == ["CC-BY-NC-4.0", "MIT"]


def test_an_empty_folder_is_a_place_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert not produce(tmp_path / "out", STEP, Settings()).skipped


def test_a_stopped_run_goes_on_from_its_scratch(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def in_two_goes(config: Settings, run: Run) -> None:
        state = run.scratch / "state"
        if not state.exists():
            write_text(state, "half")
            raise KeyboardInterrupt
        write_text(run.out / "sub" / "text.txt", state.read_text("utf-8") + " and whole")

    step = Step("two", 1, in_two_goes)
    with pytest.raises(KeyboardInterrupt):
        produce(out, step, Settings())
    assert not (out / "manifest.json").exists()
    outcome = produce(out, step, Settings())
    assert text_of_run(out) == "half and whole"
    assert outcome.manifest.attempts == 2
    assert list(outcome.manifest.outputs) == ["card.md", "sub/text.txt"]
    assert not (out / "scratch").exists()


def test_a_stopped_run_of_other_settings_is_refused_and_its_scratch_never_reused(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stops(config: Settings, run: Run) -> None:
        assert not list(run.scratch.glob("state"))
        write_text(run.scratch / "state", "half")
        write_text(run.out / "half.txt", "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce(out, Step("stops", 1, stops), Settings())
    with pytest.raises(ConfigError, match=r"out: holds another run, unfinished \(stops\)"):
        produce(out, Step("stops", 1, stops), Settings(times=5))
    with pytest.raises(KeyboardInterrupt):
        produce(out, Step("stops", 1, stops), Settings(times=5), force=True)
    assert not produce(out, STEP, Settings(), force=True).skipped
    assert not (out / "half.txt").exists()


@pytest.mark.parametrize("step", [STEP, FILE_STEP])
@pytest.mark.parametrize("error", [DataError, RunStoppedError])
def test_a_run_that_ends_before_anything_was_done_leaves_no_trace(
    tmp_path: Path, step: Step, error: type[Exception]
) -> None:
    def refuses(config: Settings, run: Run) -> None:
        (run.scratch / "parts").mkdir()
        raise error("wrong from the beginning")

    with pytest.raises(error, match="wrong from the beginning"):
        produce(tmp_path / "out", step._replace(build=refuses), Settings())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [DataError, RunStoppedError])
def test_a_folder_that_was_begun_is_gone_on_with_after_an_error(
    tmp_path: Path, error: type[Exception]
) -> None:
    out, texts = tmp_path / "out", iter(["half", "whole"])

    def begun(config: Settings, run: Run) -> None:
        text = next(texts)
        write_text(run.out / "text.txt", text)
        if text == "half":
            raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        produce(out, Step("begun", 1, begun), Settings())
    assert produce(out, Step("begun", 1, begun), Settings()).manifest.attempts == 2
    assert (out / "text.txt").read_text("utf-8") == "whole"


def test_what_others_put_into_a_folder_is_no_output_and_is_never_removed(tmp_path: Path) -> None:
    out, step = tmp_path / "out", STEP._replace(others=("answers", "log"))
    outputs = produce(out, step, Settings()).manifest.outputs
    write_text(out / "answers" / "sub" / "ann", "mine")
    write_text(out / "log", "started")
    assert produce(out, step, Settings(), force=True).manifest.outputs == outputs

    def stops(config: Settings, run: Run) -> None:
        write_text(run.scratch / "state", "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        produce(out, step._replace(build=stops), Settings(), force=True)
    produce(out, step, Settings(times=3), force=True)
    assert (out / "answers" / "sub" / "ann").read_text("utf-8") == "mine"
    assert (out / "log").read_text("utf-8") == "started"


def test_a_run_that_lost_an_output_is_made_again(tmp_path: Path, data: Path) -> None:
    produce(tmp_path / "out", STEP, Settings(data=data))
    (tmp_path / "out" / "sub" / "text.txt").unlink()
    assert not produce(tmp_path / "out", STEP, Settings(data=data)).skipped
    assert text_of_run(tmp_path / "out") == "abcabc"


def test_a_manifest_that_is_not_ours_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}", "utf-8")
    with pytest.raises(DataError, match=r"out/manifest\.json: not a manifest of equipoise$"):
        produce(tmp_path / "out", STEP, Settings())


def test_a_file_has_its_manifest_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    outcome = produce(out, FILE_STEP, Settings(times=4))
    assert out.read_text("utf-8") == "xxxx"
    names = ["rows.jsonl", "rows.jsonl.card.md", "rows.jsonl.manifest.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert list(outcome.manifest.outputs) == names[:2]
    assert produce(out, FILE_STEP._replace(build=never), Settings(times=4)).skipped
    with pytest.raises(ConfigError, match="holds another run"):
        produce(out, FILE_STEP, Settings(times=1))
    produce(out, FILE_STEP, Settings(times=1), force=True)
    assert out.read_text("utf-8") == "x"
    out.unlink()
    assert not produce(out, FILE_STEP, Settings(times=1)).skipped


def test_a_missing_input_is_named_by_setting_and_path(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        produce(tmp_path / "out", STEP, Settings(files=Files(more=(tmp_path, tmp_path / "no.txt"))))
    assert str(caught.value) == f"files.more.1: {tmp_path}/no.txt: no such file or folder"
    assert not (tmp_path / "out").exists()


def test_inputs_are_found_at_every_depth(tmp_path: Path, data: Path) -> None:
    config = Settings(data=data, files=Files(train=data, more=(tmp_path, data), named={"v1.5/a": data}))
    assert find_inputs(config) == {
        "data": data,
        "files.train": data,
        "files.more.0": tmp_path,
        "files.more.1": data,
        "files.named.v1.5/a": data,
        "model": Path("minilm"),
    }
    assert find_inputs(Settings()) == {"model": Path("minilm")}


def test_every_marked_input_is_part_of_the_identity_and_its_place_is_not(tmp_path: Path) -> None:
    def config(folder: str, text: str, which: str) -> Settings:
        paths = {name: tmp_path / folder / name for name in ("train", "more", "named")}
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, path in paths.items():
            path.write_text(text if name == which else "same", "utf-8")
        return Settings(
            files=Files(train=paths["train"], more=(paths["more"],), named={"v1.5": paths["named"]})
        )

    for which in ("train", "more", "named"):
        out = tmp_path / f"out-{which}"
        produce(out, STEP, config("a", "one", which))
        assert produce(out, STEP, config("b", "one", which)).skipped
        with pytest.raises(ConfigError, match="holds another run"):
            produce(out, STEP, config("b", "two", which))


def test_the_hash_of_a_folder_is_its_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, order in ((one, "ab"), (two, "ba")):
        (folder / "sub").mkdir(parents=True)
        for name in order:
            (folder / "sub" / name).write_text(name, "utf-8")
    os.utime(two / "sub" / "a", (1, 1))
    before = content_hash(one)
    assert before == content_hash(two)
    (two / "sub" / "a").write_text("changed", "utf-8")
    assert content_hash(two) != before
    (one / "sub" / "a").rename(one / "sub" / "c")
    assert content_hash(one) != before


def test_the_hash_of_a_run_is_that_of_its_outputs(tmp_path: Path) -> None:
    produce(tmp_path / "one", STEP, Settings())
    produce(tmp_path / "two", STEP, Settings())
    produce(tmp_path / "other", STEP, Settings(times=3))
    hashes = [content_hash(tmp_path / name) for name in ("one", "two", "other")]
    assert hashes[0] == hashes[1] != hashes[2]
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert content_hash(tmp_path / "copy") == hashes[0]


def test_a_name_that_is_no_path_is_its_own_identity() -> None:
    assert content_hash(Path("minilm")) == content_hash(Path("minilm")) != content_hash(Path("smollm2-135m"))
