"""Every mistake a user can make, and every way a run can stop.

    EquipoiseError            exit 2: the user's mistake, one line, no traceback
    ├── ConfigError           a setting, a recipe or a command-line value
    ├── DataError             a file, a line, a field
    ├── TaxonomyError         a harm taxonomy or a category name
    ├── ModelError            a model folder, a checkpoint, a backbone
    └── MissingExtraError     an optional package that is not installed
    GateFailedError                exit 1: what was measured is not good enough to go on
    RunStoppedError                exit 3: the run could not go on; the same command resumes it

Messages have one shape: `where: what is wrong, got X; expected or known Y (did you mean Z?)`.
Anything else that is raised is a bug of ours and keeps its traceback.
"""

import difflib
import errno
import os
import re
from collections.abc import Iterable

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class EquipoiseError(Exception):
    """A mistake that the user can mend; shown as one line, exit code 2."""


class ConfigError(EquipoiseError):
    """A setting that does not exist or does not fit."""


class DataError(EquipoiseError):
    """A file, line or field that cannot be read as what it should be."""


class TaxonomyError(EquipoiseError):
    """A taxonomy file or a category name that does not fit."""


class ModelError(EquipoiseError):
    """A model or checkpoint that is missing or is not what the caller needs."""


class MissingExtraError(EquipoiseError):
    """An optional package is missing; the message names the extra that brings it."""

    def __init__(self, what: str, extra: str) -> None:
        """Say that `what` needs the optional dependency group `extra`."""
        super().__init__(f"{what} needs the extra '{extra}': pip install 'equipoise[{extra}]'")


class GateFailedError(Exception):
    """A gate of a recipe was not passed; exit code 1, and what it measured is written."""


class RunStoppedError(Exception):
    """The run cannot go on (NaN, disk full, endpoint dead); exit code 3, the same command resumes it."""


def disk_error(error: BaseException) -> OSError | None:
    """Return the error of a full or broken disk that an exception stands for; None of any other.

    What writes weights raises errors of its own there: safetensors and tokenizers tell the system's number,
    torch does not.

    >>> disk_error(Exception("No space left on device (os error 28)"))
    OSError(28, 'No space left on device')
    """
    if isinstance(error, OSError):
        return error if error.errno in _DISK else None
    if told := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(told[1])
        return OSError(number, os.strerror(number)) if number in _DISK else None
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return OSError(errno.EIO, "full, or broken")
    return None


def near(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest known name, or an empty string.

    >>> near("gama", ["beta", "gamma"])
    " (did you mean 'gamma'?)"
    >>> near("zzz", ["beta"])
    ''
    """
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""
