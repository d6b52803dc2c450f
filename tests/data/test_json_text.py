"""Where a JSON text breaks off, against every prefix of a line whose fields are known."""

import json

import pytest

from equipoise.data.json_text import JsonError, field_at, load_json

LINE = (
    '{"id": "x", "prompt": [{"role": "user", "content": "say \\"severity\\": 2, {[ :"}], "is_safe": true,'
    ' "answers": [{"response": "a", "severity": 3}, {"response": "b"}], "provenance": {"n": null}}'
)


def begun(marker: str, field: str) -> tuple[str, str]:
    return LINE[: LINE.index(marker) + len(marker)], field


@pytest.mark.parametrize(
    ("text", "field"),
    [
        begun('"id": "x', "id"),
        begun('"id": "x"', "line"),
        begun('"pro', "line"),
        begun('"prompt":', "prompt"),
        begun('"content": "say', "prompt.0.content"),
        begun('"severity\\": 2, {[ :', "prompt.0.content"),
        begun('"is_safe": tr', "is_safe"),
        begun('"is_safe": true, "ans', "line"),
        begun('"answers": [{"resp', "answers.0"),
        begun('"severity": ', "answers.0.severity"),
        begun('{"response": "b', "answers.1.response"),
        begun('"b"}], "prov', "line"),
        begun('"n": nu', "provenance.n"),
    ],
)
def test_a_line_that_is_cut_off_names_the_field_it_is_cut_off_in(text: str, field: str) -> None:
    with pytest.raises(JsonError) as caught:
        load_json(text)
    assert (caught.value.field, caught.value.what) == (
        field,
        f"the line is cut off after character {len(text.rstrip())}",
    )


def test_every_cut_of_a_line_is_an_error_that_names_a_field_of_it() -> None:
    fields = {"line", "id", "prompt", "is_safe", "answers", "provenance"}
    assert load_json(LINE) == json.loads(LINE)
    for length in range(len(LINE)):
        with pytest.raises(JsonError) as caught:
            load_json(LINE[:length])
        assert caught.value.field.split(".")[0] in fields
        assert "cut off" in caught.value.what


def test_a_deep_or_long_text_is_walked_without_recursion() -> None:
    assert field_at('{"a": ' + "[" * 100_000) == "a.0.0.0.0"
    assert field_at('{"a": "' + "b" * 10_000_000) == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "he said "so""}', "a: not JSON: expecting ',' delimiter at character 17"),
        ('{"a": yes}', "a: not JSON: expecting value at character 7"),
        ('{"a": 1} {"b": 2}', "line: not JSON: extra data at character 10"),
        ('{"a": 1,}', "line: not JSON: expecting property name"),
        ('{"a": {"b": 1, "b": 1}}', "b: stands twice in one object"),
        ('{"a": -1e999}', "line: .* -1e999 is out of range"),
        ('{"a": NaN}', "line: not JSON: NaN is no JSON number"),
        ('{"a": ' + "1" * 5000 + "}", "line: not JSON: "),
        ('{"a": ["\\udc00"]}', "a: half of a surrogate pair"),
        ('{"\\udc00": 1}', "line: half of a surrogate pair in a name"),
        ("[" * 100_000, "line: .*nested too deep"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(JsonError, match=f"^{message}"):
        load_json(text)
