"""The `equipoise` command: a user's mistake is one line on stderr, a bug keeps its traceback."""

import errno
import sys

import typer

from equipoise.cli import data, evaluate, generate, judge, models, run, train
from equipoise.errors import EquipoiseError, RunStoppedError

app = typer.Typer(
    help="Multi-level safety alignment of language models, helpfulness and harmlessness in balance.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run.demo)
app.command()(run.run)
app.add_typer(data.app, name="data")
app.command()(generate.generate)
app.add_typer(train.app, name="train")
app.command()(judge.moderate)
app.command()(judge.score)
app.command()(judge.refusals)
app.command()(evaluate.evaluate)
app.command()(evaluate.compare)
app.command()(evaluate.report)
app.add_typer(models.app, name="models")
app.command()(models.doctor)

DONE, PROBLEMS, MISTAKE, STOPPED = 0, 1, 2, 3
_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt


def main() -> None:
    """Run the command line and exit: 0 done, 1 problems found, 2 user's mistake, 3 stopped, resumable."""
    try:
        app()
    except EquipoiseError as error:
        _end(f"error: {error}", MISTAKE)
    except RunStoppedError as error:
        _end(f"stopped: {error}; the same command resumes", STOPPED)
    except SystemExit as left:
        if left.code != _INTERRUPTED:
            raise
        _end("stopped: interrupted; the same command resumes", STOPPED)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            _end(f"stopped: {error.filename or 'disk'}: {error.strerror}; the same command resumes", STOPPED)
        if error.filename is None:
            raise
        _end(f"error: {error.filename}: {error.strerror}", MISTAKE)


def _end(message: str, code: int) -> None:
    sys.stderr.write(message + "\n")
    sys.exit(code)
