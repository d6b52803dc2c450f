"""A mistake in the command line itself, in one line: typer finds it, and we say it as we say the others."""

import re
from typing import Any, cast

import typer

from equipoise.errors import near

UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)
"""What typer raises for a wrong command line; only its children are public."""

_HINT = re.compile(r"\.? Did you mean .*\?$| \(Possible options: .*\)$|\.$")
_COMMAND = re.compile(r"no such command '(.*)'$")
_CHOICE = re.compile(r"'([^']*)' is not one of (.*)$")


def is_help(error: typer.BadParameter) -> bool:
    """Whether it says no more than that a group of commands was called without one, which shows its help."""
    return error.ctx is not None and error.message == error.ctx.get_help()


def explain(error: typer.BadParameter) -> str:
    """Return `command: what is wrong (did you mean ...?)`, or where to read on."""
    text = " ".join(error.format_message().split()).replace("Value error, ", "")
    text = _HINT.sub("", text)
    text = text[:1].lower() + text[1:]
    if error.ctx is None:  # typer does not say of which command
        return f"command line: {text}"
    where = error.ctx.command_path
    return f"{where}: {text}{_near(error, text) or f'; see {where} --help'}"


def _near(error: Any, text: str) -> str:
    """Look for the near name among the command's options, the group's commands or the value's choices."""
    command = error.ctx.command
    if text.startswith("no such option"):
        return near(error.option_name, [name for param in command.params for name in param.opts])
    if found := _COMMAND.search(text):
        return near(found[1], command.commands)
    if found := _CHOICE.search(text):
        return near(found[1], re.findall(r"'(.*?)'", found[2]))
    return ""
