"""Logs as JSON, one object a line, without a word of any user's.

The message of an exception may quote a text, and so may a path or a query; what is logged of an exception is
its kind and where it was raised, and of a request the path that the server knows it by.
"""

import asyncio
import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("equipoise.server")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, and what `fields` of the record holds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            entry["error"] = _chain(record.exc_info[1])
        return json.dumps(entry, ensure_ascii=False)


def event(
    name: str,
    fields: Mapping[str, Any] | None = None,
    *,
    level: int = logging.INFO,
    error: BaseException | None = None,
) -> None:
    """Log something that happened; no field may hold a user's text."""
    LOG.log(level, name, extra={"fields": fields or {}}, exc_info=error)


def configure() -> None:
    """Send the logs of the process to stderr as JSON lines, those of libraries from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in (LOG.name, "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no one awaited; asyncio's own line would show the exception's message."""
    event("unhandled", level=logging.ERROR, error=context.get("exception"))


def _chain(error: BaseException) -> list[dict[str, Any]]:
    """Return kind and frames of an exception and of those that led to it, last first."""
    found: list[dict[str, Any]] = []
    one: BaseException | None = error
    while one is not None and len(found) < 10:
        frames = traceback.extract_tb(one.__traceback__)
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        found.append({"type": type(one).__name__, "where": where})
        one = one.__cause__ or one.__context__
    return found
