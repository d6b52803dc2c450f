"""The `equipoise` command: a user's mistake is one line on stderr, a bug keeps its traceback."""

import sys
from typing import Annotated

import typer

from equipoise import __version__
from equipoise.cli import (  # noqa: F401  the people and stats modules register on annotate.app
    annotate,
    annotate_people,
    annotate_stats,
    calibrate,
    certify,
    curate,
    data,
    evaluate,
    export,
    generate,
    judge,
    models,
    one_shot,
    prompts,
    responses,
    run,
    serve,
    sweep,
    train,
)
from equipoise.cli.usage import UsageError, explain, is_help
from equipoise.errors import EquipoiseError, GateFailedError, RunStoppedError, disk_error

app = typer.Typer(
    help="Multi-level safety alignment of language models, helpfulness and harmlessness in balance.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(run.demo)
app.command()(run.run)
app.command()(sweep.sweep)
data.app.command()(export.export)
app.add_typer(data.app, name="data")
app.add_typer(prompts.app, name="prompts")
app.command()(generate.generate)
app.add_typer(responses.app, name="responses")
app.add_typer(curate.app, name="curate")
app.add_typer(annotate.app, name="annotate")
app.command("one-shot")(one_shot.one_shot)
app.add_typer(train.app, name="train")
app.command()(calibrate.calibrate)
app.command()(judge.moderate)
app.command()(judge.score)
app.command()(judge.refusals)
app.command()(serve.serve)
app.command()(evaluate.evaluate)
app.command()(certify.certify)
app.command()(evaluate.compare)
app.command()(evaluate.report)
app.add_typer(models.app, name="models")
app.command()(models.doctor)

DONE, PROBLEMS, MISTAKE, STOPPED = 0, 1, 2, 3
_INTERRUPTED = 130  # what typer makes of a KeyboardInterrupt


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"equipoise {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that come before the command."""


def main() -> None:
    """Run the command line and exit: 0 done, 1 problems found, 2 user's mistake, 3 stopped, resumable."""
    try:
        with _FullDisk():
            left = app(prog_name="equipoise", standalone_mode=False)
    except UsageError as error:
        if not is_help(error):
            _end(f"error: {explain(error)}", MISTAKE)
        error.show()
        sys.exit(MISTAKE)
    except EquipoiseError as error:
        _end(f"error: {error}", MISTAKE)
    except GateFailedError as error:
        _end(f"gate failed: {error}", PROBLEMS)
    except RunStoppedError as error:
        _end(f"stopped: {error}; the same command resumes", STOPPED)
    except OSError as error:
        if error.filename is None:
            raise
        _end(f"error: {error.filename}: {error.strerror}", MISTAKE)
    if left == _INTERRUPTED:
        _end("stopped: interrupted; the same command resumes", STOPPED)
    sys.exit(left or DONE)


class _FullDisk:
    """Ends the program where a disk is full or broken, whichever library says so; all else goes on."""

    def __enter__(self) -> None:
        """Nothing is prepared."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Look at what went wrong."""
        if error is not None and (full := disk_error(error)):
            _end(f"stopped: {full.filename or 'disk'}: {full.strerror}; the same command resumes", STOPPED)


def _end(message: str, code: int) -> None:
    sys.stderr.write(message + "\n")
    sys.exit(code)
