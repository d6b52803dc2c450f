"""The numbers of a log sent to a tracker as well: those that accelerate knows, such as TensorBoard."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

from equipoise.errors import ConfigError, near
from equipoise.models.backbone import Device, pick_device

_PROJECT = "equipoise"


@contextmanager
def tracking(
    names: Sequence[str], folder: Path, device: Device
) -> Iterator[Callable[[Mapping[str, Any], int], None]]:
    """Yield what sends a line's numbers, with its step, to the trackers of these names.

    Args:
        names: Of trackers; none sends nothing.
        folder: Where those write that write files.
        device: What the process computes on.

    Raises:
        ConfigError: There is no such tracker, or it is not installed.
    """
    if names:
        PartialState(
            cpu=pick_device(device).type == "cpu"
        )  # which trackers ask whether this is the first process
    trackers = [_start(name, folder) for name in names]

    def send(line: Mapping[str, Any], step: int) -> None:
        for tracker in trackers:
            tracker.log(numbers(line), step=step)

    try:
        yield send
    finally:
        for tracker in trackers:
            tracker.finish()


def numbers(line: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """Return a line's numbers under flat names.

    >>> numbers({"kl": 0.5, "costs": {"harm": 1.0}, "states": {"harm": "active"}})
    {'kl': 0.5, 'costs/harm': 1.0}
    """
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{before}{name}/")
        elif isinstance(value, int | float):
            found[before + name] = value
    return found


def _start(name: str, folder: Path) -> Any:
    known = sorted(LOGGER_TYPE_TO_CLASS)
    if name not in known:
        raise ConfigError(f"report_to: got '{name}'{near(name, known)}; expected one of {', '.join(known)}")
    if not filter_trackers([name], folder):
        raise ConfigError(f"report_to: '{name}' is not installed")
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(_PROJECT, folder) if kind.requires_logging_directory else kind(_PROJECT)
    tracker.start()
    return tracker
