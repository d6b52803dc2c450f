"""What a guarded stream lets out: nothing before its check, however the text is cut; all of what is safe."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import pairwise
from math import inf, nan
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.config import load_config
from equipoise.errors import ConfigError, ModelError, RunStoppedError
from equipoise.moderation.streaming import (
    Check,
    Done,
    Event,
    Failed,
    Released,
    Stopped,
    StreamConfig,
    StreamGuard,
    guard_stream,
    guard_stream_async,
)
from equipoise.protocols import Verdict

Judge = Callable[[Check], bool]
"""Whether a window is safe."""


def verdict(is_safe: bool, **more: Any) -> Verdict:
    p = 0.1 if is_safe else 0.9
    levels = (1 - p, p, 0.0, 0.0)
    harm = () if is_safe else ("Cybercrime",)
    return Verdict(is_safe, p, 0 if is_safe else 1, levels, harm, {"Cybercrime": p}, False)._replace(**more)


PROPERTY = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 2**32)


def config_of(seed: int, least_hold_back: int = 0) -> StreamConfig:
    random = Random(seed)
    stride, hits = random.randint(1, 8), random.randint(1, 3)
    hold_back = random.randint(least_hold_back, 12)
    window = hold_back + hits * stride + random.choice([0, 0, 1, 9])
    return StreamConfig(window=window, stride=stride, hold_back=hold_back, hits=hits)


def split(seed: int, text: str) -> list[str]:
    """The text in pieces: single characters, one block, or anything between; some are empty."""
    random = Random(seed)
    if seed % 3 == 0:
        return [*text] if seed % 2 else [text]
    cuts = sorted(random.randint(0, len(text)) for _ in range(random.randint(0, 30)))
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


def drive(
    config: StreamConfig, deltas: Sequence[str], is_safe: Judge
) -> Iterator[tuple[Check, bool, list[Event]]]:
    """Yield every check with its answer and what followed."""
    guard = StreamGuard(config)
    for delta in [*deltas, None]:
        for check in guard.end() if delta is None else guard.feed(delta):
            answer = is_safe(check)
            yield check, answer, guard.judged(check, verdict(answer))


def events(config: StreamConfig, deltas: Sequence[str], is_safe: Judge) -> list[Event]:
    return [event for *_, found in drive(config, deltas, is_safe) for event in found]


def text_of(found: Sequence[Event]) -> str:
    return "".join(event.text for event in found if isinstance(event, Released))


@PROPERTY
@given(SEEDS, st.integers(0, 90), st.sampled_from([0.1, 0.5, 0.9]))
def test_no_part_as_long_as_the_hold_back_goes_out_before_a_window_that_holds_it_passed(
    seed: int, length: int, share: float
) -> None:
    config = config_of(seed)
    text = "".join(chr(0x4E00 + i) for i in range(length))  # every character is another one
    deltas = split(seed, text)
    passed: list[range] = []
    out = 0
    for check, is_safe, found in drive(
        config, deltas, lambda c: Random(f"{seed}/{c.start}/{c.end}").random() < share
    ):
        assert check.text == text[check.start : check.end]
        if is_safe:
            passed.append(range(check.start, check.end + 1))
        out += len(text_of(found))
        for start in range(out):
            end = min(start + max(1, config.hold_back), length)
            assert any(start in window and end in window for window in passed)


@PROPERTY
@given(SEEDS, st.integers(0, 60), st.integers(0, 60))
def test_a_harmful_part_that_fits_the_hold_back_never_leaks_a_character(
    seed: int, before: int, after: int
) -> None:
    config = config_of(seed, least_hold_back=1)
    marker = "#" * Random(seed).randint(1, config.hold_back)
    text = "a" * before + marker + "b" * after
    found = events(config, split(seed, text), lambda check: marker not in check.text)
    assert text_of(found) == text[: len(text_of(found))]
    assert len(text_of(found)) <= before
    stop = found[-1]
    assert isinstance(stop, Stopped)
    assert stop.offset == len(text_of(found))
    assert marker in text[slice(*stop.window)]
    assert (stop.severity, stop.categories) == (1, ("Cybercrime",))
    assert not any(isinstance(event, Done) for event in found)


@PROPERTY
@given(SEEDS, st.integers(0, 60), st.integers(0, 60))
def test_of_a_longer_part_only_what_exceeds_the_hold_back_is_out_when_it_is_seen_whole(
    seed: int, before: int, after: int
) -> None:
    config = config_of(seed)
    longest = config.window - config.hits * config.stride + 1
    marker = "#" * Random(seed).randint(max(1, config.hold_back), longest)
    text = "a" * before + marker + "b" * after
    found = events(config, split(seed, text), lambda check: marker not in check.text)
    assert isinstance(found[-1], Stopped)
    assert len(text_of(found)) <= before + max(0, len(marker) - config.hold_back)


PIECES = [
    "a",
    " ",
    "ß",
    "😀",
    "e\u0301",
    "\u0301",
    "한",
    "\u200d",
    "\ud83d",
    "\ude00",
    "\x00",
    "\r\n",
    "🏳️\u200d🌈",
]


@PROPERTY
@given(SEEDS, st.lists(st.sampled_from(PIECES), max_size=60).map("".join))
def test_a_harmless_stream_goes_out_whole_in_order_and_unchanged(seed: int, text: str) -> None:
    config = config_of(seed)
    found = events(config, split(seed, text), lambda check: True)
    assert text_of(found).encode("utf-8", "surrogatepass") == text.encode("utf-8", "surrogatepass")
    out = 0
    for event in found[:-1]:
        assert isinstance(event, Released)
        assert event.offset == out
        assert event.text
        out += len(event.text)
    assert found[-1] == Done(len(text))


@PROPERTY
@given(SEEDS, st.text(max_size=90))
def test_what_is_judged_does_not_depend_on_how_the_text_is_cut(seed: int, text: str) -> None:
    config = config_of(seed)
    checks = [check for check, *_ in drive(config, split(seed, text), lambda c: True)]
    assert checks == [check for check, *_ in drive(config, [text], lambda c: True)]
    assert [c.end for c in checks] == [*range(config.stride, len(text) + 1, config.stride), len(text)]


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_work_is_linear_in_the_text(size: int) -> None:
    config = StreamConfig()
    text = "a harmless line of text\n" * 1000
    deltas = [text[i : i + size] for i in range(0, len(text), size)]
    judged = sum(len(check.text) for check, *_ in drive(config, deltas, lambda c: True))
    assert judged <= (len(text) / config.stride + 1) * config.window
    assert judged >= len(text)


def test_what_is_kept_of_a_long_stream_is_bounded() -> None:
    guard = StreamGuard()
    for _ in range(1000):
        for check in guard.feed("a" * 50):
            guard.judged(check, verdict(True))
    config = guard.settings
    assert len(guard._kept) <= config.window + config.stride + 50


SMALL = StreamConfig(window=10, stride=2, hold_back=4, hits=2)


def test_a_single_hit_halts_the_release_and_a_pass_takes_the_halt_back() -> None:
    text = "0123456789abcdef"
    hits = {8, 12}
    log = [
        (c.end, text_of(found)) for c, _, found in drive(SMALL, [*text], lambda check: check.end not in hits)
    ]
    # at 6 all but four is out; 8 hits; 10 passes, so that all before 6 goes out; and so on
    assert log == [
        (2, ""),
        (4, ""),
        (6, "01"),
        (8, ""),
        (10, "2345"),
        (12, ""),
        (14, "6789"),
        (16, "ab"),
        (16, "cdef"),
    ]


def test_two_hits_in_a_row_stop_and_nothing_follows() -> None:
    guard = StreamGuard(SMALL)
    checks = guard.feed("0123456789abcdef")
    found = [guard.judged(check, verdict(check.end not in {8, 10})) for check in checks]
    unsafe = verdict(False)
    assert found[2:5] == [[Released("01", 0)], [], [Stopped(2, 1, ("Cybercrime",), (0, 10), unsafe)]]
    assert found[5:] == [[], [], []]
    assert guard.is_over
    assert guard.feed("more of it") == guard.end() == []


@pytest.mark.parametrize("length", [0, 1, 7, 8])
def test_one_hit_on_the_last_check_stops(length: int) -> None:
    text = "0123456789"[:length]
    guard = StreamGuard(SMALL)
    for check in guard.feed(text):
        guard.judged(check, verdict(True))
    (last,) = guard.end()
    (event,) = guard.judged(last, verdict(False))
    assert isinstance(event, Stopped)
    assert event.offset == max(0, length // 2 * 2 - 4)


def test_half_a_surrogate_pair_is_no_text_for_a_judge_and_goes_out_as_it_came() -> None:
    guard = StreamGuard(SMALL)
    (check,) = [*guard.feed("a"), *guard.feed("\ud83d")]
    assert check.text == "a\ufffd"
    guard.judged(check, verdict(True))
    (check,) = [*guard.feed("\ude00"), *guard.feed("b")]
    assert check.text == "a😀b"
    guard.judged(check, verdict(True))
    (check,) = guard.end()
    assert guard.judged(check, verdict(True)) == [Released("a\ud83d\ude00b", 0), Done(4)]


NOTHING = [
    {"unsafe_probability": nan},
    {"unsafe_probability": inf},
    {"unsafe_probability": -0.1},
    {"severity_probabilities": (0.5, nan, 0.2, 0.1)},
    {"category_probabilities": {"Cybercrime": nan}},
    {"category_probabilities": {"Cybercrime": 1.5}},
]


@pytest.mark.parametrize("said", NOTHING, ids=str)
@pytest.mark.parametrize("at", [6, 8, 16])
def test_a_verdict_that_is_no_number_stops_the_stream(said: dict[str, Any], at: int) -> None:
    guard = StreamGuard(SMALL)
    found: list[Event] = []
    for check in [*guard.feed("0123456789abcdef"), *guard.end()]:
        found += guard.judged(check, verdict(True, **(said if check.end == at else {})))
    out = text_of(found)
    assert out == "0123456789abcdef"[: max(0, at - 2 - 4)]
    assert found[-1] == Failed(len(out), "the guard's answer is not finite")


@pytest.mark.parametrize("raised", [ModelError("x"), RunStoppedError("x"), TimeoutError(), OSError("x")])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_judge_that_cannot_answer_stops_the_stream(raised: Exception, is_async: bool) -> None:
    def judge(windows: Sequence[str]) -> list[Verdict]:
        if "8" in windows[-1]:
            raise raised
        return [verdict(True) for _ in windows]

    found = collect(is_async, [*"0123456789abcdef"], judge)
    assert found == [
        Released("01", 0),
        Released("23", 2),
        Failed(4, f"the guard gave no answer ({type(raised).__name__})"),
    ]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("fault", [KeyError, "short"])
def test_a_fault_of_ours_keeps_its_traceback_and_releases_nothing(fault: Any, is_async: bool) -> None:
    out: list[Event] = []

    def judge(windows: Sequence[str]) -> list[Verdict]:
        if fault == "short":
            return [verdict(True)] * (len(windows) - 1)
        raise fault("x")

    with pytest.raises(ValueError if fault == "short" else KeyError):
        collect(is_async, ["0123456789abcdef"], judge, out)
    assert out == []


@PROPERTY
@given(SEEDS, st.text(alphabet="ab#", max_size=90))
def test_both_drivers_do_what_the_bare_machine_does(seed: int, text: str) -> None:
    config = config_of(seed)
    deltas = split(seed, text)
    expected = events(config, deltas, lambda check: "#" not in check.text)

    def judge(windows: Sequence[str]) -> list[Verdict]:
        return [verdict("#" not in window) for window in windows]

    assert list(guard_stream(deltas, judge, config)) == expected
    assert collect(True, deltas, judge, config=config) == expected


def test_a_stop_spares_the_judge_the_rest_of_a_block() -> None:
    judged = []

    def judge(windows: Sequence[str]) -> list[Verdict]:
        judged.extend(windows)
        return [verdict(False) for _ in windows]

    (stop,) = guard_stream(["x" * 10_000], judge, SMALL)
    assert isinstance(stop, Stopped)
    assert len(judged) < 20


def test_verdicts_out_of_turn_and_text_after_the_end_are_bugs() -> None:
    guard = StreamGuard(SMALL)
    first, second = guard.feed("0123")
    with pytest.raises(ValueError, match="out of turn"):
        guard.judged(second, verdict(True))
    guard = StreamGuard(SMALL)
    guard.end()
    with pytest.raises(ValueError, match="after the end"):
        guard.feed("more")
    assert first.end == 2


def test_a_window_too_short_for_what_waits_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"got 60; expected at least hold_back \+ hits \* stride = 64"):
        load_config(StreamConfig, overrides=["window=60", "hold_back=32", "stride=16"])
    assert load_config(StreamConfig, overrides=["window=64", "hold_back=32", "stride=16"]).hits == 2


def collect(
    is_async: bool,
    deltas: Sequence[str],
    judge: Callable[[Sequence[str]], Sequence[Verdict]],
    out: list[Event] | None = None,
    config: StreamConfig = SMALL,
) -> list[Event]:
    found = [] if out is None else out

    async def judge_async(windows: Sequence[str]) -> Sequence[Verdict]:
        return judge(windows)

    async def come() -> AsyncIterator[str]:
        for delta in deltas:
            yield delta

    async def run() -> None:
        async for event in guard_stream_async(come(), judge_async, config):
            found.append(event)

    if is_async:
        asyncio.run(run())
    else:
        for event in guard_stream(deltas, judge, config):
            found.append(event)
    return found


def test_a_window_that_was_read_in_part_is_not_released() -> None:
    guard = StreamGuard(StreamConfig(window=8, stride=2, hold_back=2))
    first, second = guard.feed("abcd")
    assert guard.judged(first, verdict(True)) == []
    assert guard.judged(second, verdict(True, truncated=True)) == [
        Failed(0, "a window is longer than the guard reads; expected a smaller one", 413)
    ]
    assert guard.is_over
    assert guard.feed("ef") == []
