"""Settings: what YAML means, what wins, and what a mistake says."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.config import (
    Config,
    apply_override,
    bind,
    load_config,
    parse_config,
    parse_override,
    read_yaml,
    to_yaml,
)
from equipoise.errors import ConfigError


class Optim(Config):
    lr: float = 0.1
    clip_norm: float = 1.0


class Part(Config):
    name: str = "part"


class Settings(Config):
    optim: Optim = Optim()
    parts: tuple[Part, ...] = ()
    maybe: Optim | None = None
    lang: str = "en"
    steps: int = 10


def message(call: Any, *args: Any) -> str:
    """Return the one line that the call's ConfigError says."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, "utf-8")
    return path


def test_the_command_line_wins_over_the_file_and_the_file_over_the_class(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, "optim: {lr: 0.5, clip_norm: 2.0}\nsteps: 7\n")
    config = load_config(Settings, path, ["optim.lr=1e-5"])
    assert config == Settings(optim=Optim(lr=1e-5, clip_norm=2.0), steps=7)
    assert load_config(Settings) == Settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5E3", 5e3),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("null", None),
        ("", None),
        ("010", 10),
        ("12:30", "12:30"),
        ("'1'", "1"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("a=b", "a=b"),
    ],
)
def test_values_are_read_as_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    assert read_yaml(yaml_file(tmp_path, f"key: {text}\n"))["key"] == value
    keys, read = parse_override(f"a.key={text}")
    assert keys == ["a", "key"]
    assert read == value
    assert type(read) is type(value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="ascii")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcno0123", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcyesno01", min_size=1, max_size=6), plain, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("yaml") / "run.yaml"
    path.write_text(to_yaml(data), "utf-8")
    assert read_yaml(path) == data


def test_the_written_form_keeps_the_order_of_the_settings() -> None:
    assert to_yaml({"b": 1, "a": {"z": 2, "y": "no"}}) == "b: 1\na:\n  z: 2\n  y: no\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lnag: de", "run.yaml: lnag: no such setting (did you mean 'lang'?)"),
        ("optim: {clipnorm: 1}", "run.yaml: optim.clipnorm: no such setting (did you mean 'clip_norm'?)"),
        ("maybe: {clipnorm: 1}", "run.yaml: maybe.clipnorm: no such setting (did you mean 'clip_norm'?)"),
        ("parts: [{}, {nam: x}]", "run.yaml: parts.1.nam: no such setting (did you mean 'name'?)"),
        ("zzzzz: 1", "run.yaml: zzzzz: no such setting"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_near_name(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert message(load_config, Settings, yaml_file(tmp_path, text)) == f"{tmp_path}/{expected}"


def test_a_wrong_value_is_named_with_the_value(tmp_path: Path) -> None:
    text = message(load_config, Settings, yaml_file(tmp_path, "lang: 3\nsteps: many\n"))
    assert text.startswith(f"{tmp_path}/run.yaml: lang: Input should be a valid string")
    assert text.endswith("got 3 (and 1 more)")


def test_a_long_value_is_cut() -> None:
    assert len(message(load_config, Settings, None, ["steps=" + "x" * 5000])) < 200


def test_a_missing_setting_is_named() -> None:
    class Needs(Config):
        needed: int

    assert message(parse_config, Needs, {}, "here") == "here: needed: missing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: [1, 2\n", "run.yaml:3: not YAML"),
        ("a: 1\n\tb: 2\n", "run.yaml:2: not YAML"),
        ("a: 1\na: 2\n", "run.yaml:2: not YAML"),
        ("a: 1\nb: !!python/object:os.system {}\n", "run.yaml:2: not YAML"),
        ("- a\n- b\n", "run.yaml: expected a mapping of settings, got list"),
        ("just a text", "run.yaml: expected a mapping of settings, got str"),
    ],
)
def test_a_file_that_is_no_mapping_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert message(read_yaml, yaml_file(tmp_path, text)).startswith(f"{tmp_path}/{expected}")


def test_a_missing_file_a_folder_and_other_bytes_are_one_line(tmp_path: Path) -> None:
    assert message(read_yaml, tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: No such file or directory"
    assert message(read_yaml, tmp_path) == f"{tmp_path}: Is a directory"
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9\n")
    assert message(read_yaml, tmp_path / "latin.yaml") == f"{tmp_path}/latin.yaml: byte 6 is not UTF-8"


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(Settings, yaml_file(tmp_path, "# nothing\n")) == Settings()


@pytest.mark.parametrize("item", ["steps", "=1", "a..b=1", ".a=1"])
def test_an_override_that_is_no_assignment_says_what_one_looks_like(item: str) -> None:
    assert message(parse_override, item) == f"--set {item}: expected key=value, for example optim.lr=1e-5"


def test_an_override_whose_value_is_broken() -> None:
    assert message(parse_override, "a=[1") == "--set a=[1: the value is not YAML"


def test_an_override_into_a_value_is_refused() -> None:
    assert message(apply_override, {"lang": "en"}, ["lang", "x"], 1) == (
        "--set lang.x: 'lang' is a value, not a section"
    )
    assert message(load_config, Settings, None, ["steps=3", "steps.x=4"]).startswith(
        "--set steps.x: 'steps' is"
    )


def test_an_override_of_an_unknown_key_names_the_command_line() -> None:
    assert message(load_config, Settings, None, ["optim.clip=1"]) == (
        "command line: optim.clip: no such setting (did you mean 'clip_norm'?)"
    )


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().steps = 3  # type: ignore[misc]


def power(base: float, *, exponent: float = 2.0) -> float:
    """Stand for an objective: positional data, keyword-only settings."""
    return base**exponent


def test_bind_fixes_the_keyword_only_parameters() -> None:
    assert bind("kind", {"power": power}, "power", {"exponent": 3.0})(2.0) == 8.0
    assert bind("kind", {"power": power}, "power", {})(2.0) == 4.0


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("powr", {}, "kind: got 'powr' (did you mean 'power'?); expected one of power, plain"),
        (
            "power",
            {"exponnt": 1},
            "kind_params: 'power' takes no 'exponnt' (did you mean 'exponent'?); it takes: exponent",
        ),
        ("power", {"base": 1}, "kind_params: 'power' takes no 'base'; it takes: exponent"),
        ("plain", {"x": 1}, "kind_params: 'plain' takes no 'x'; it takes: nothing"),
    ],
)
def test_bind_refuses_what_the_signature_does_not_have(
    name: str, params: dict[str, float], expected: str
) -> None:
    assert message(bind, "kind", {"power": power, "plain": abs}, name, params) == expected
