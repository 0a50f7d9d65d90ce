"""The command line. Each command parses, calls one verb, and prints: a table for a person, JSON for a machine.

Heavy modules are imported inside the commands, so that `klscale --help` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from klscale.cli import pages, quantizing, scoring, stores, studies, text_sets, validation
from klscale.cli.options import with_options
from klscale.cli.status import failure_status
from klscale.errors import KlscaleError, ScoringError
from klscale.show.scoring import print_failures
from klscale.show.terminal import err, plain, print_error


class _Commands(TyperGroup):
    """Errors that a user can mend are printed in their three lines; Ctrl-C says what is kept."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ScoringError as error:
            print_failures(error.outcomes)
            raise typer.Exit(failure_status(error.outcomes)) from error
        except KlscaleError as error:
            print_error(error)
            raise typer.Exit(error.exit_status) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):  # nobody reads it any more
                raise typer.Exit(141) from error
            print_error(KlscaleError(f"{error.filename or 'A file'} cannot be used.", f"{error.strerror or error}."))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            err.print("\nInterrupted. What was finished is kept; the same command goes on from there.", style="yellow")
            raise typer.Exit(130) from error


class _Notes(logging.Handler):
    """What the store leaves out is said on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(plain(record.getMessage()), style="yellow", soft_wrap=True)


logging.getLogger("klscale.store").addHandler(_Notes())

app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="How far apart are two language models, and is that a lot? KL divergence in bits per byte, with error bars.",
)
texts_app = typer.Typer(
    cls=_Commands, no_args_is_help=True, help="Text sets: list, inspect, build, draw from a model, freeze a clip."
)
app.add_typer(texts_app, name="texts")

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": scoring.demo,
    "score": scoring.score,
    "compare": scoring.compare,
    "layers": scoring.layers,
    "sensitivity": quantizing.sensitivity,
    "card": quantizing.card,
    "check-card": quantizing.check_card,
    "kld": quantizing.kld,
    "trajectory": studies.trajectory,
    "kl": studies.kl,
    "scale": studies.scale,
    "validate": validation.validate,
    "place": studies.place,
    "predict": studies.predict,
    "changes": studies.changes,
    "drift": studies.drift,
    "map": pages.map_command,
    "report": pages.report,
    "serve": pages.serve,
    "import": stores.import_command,
    "export": stores.export,
    "ls": stores.ls,
    "rm": stores.rm,
    "check": stores.check,
    "compact": stores.compact,
    "doctor": stores.doctor,
}
TEXTS_COMMANDS: dict[str, Callable[..., None]] = {
    "list": text_sets.list_command,
    "info": text_sets.info,
    "build": text_sets.build,
    "draw": text_sets.draw,
    "clip": text_sets.clip,
}
for name in COMMANDS:
    app.command(name)(with_options(COMMANDS[name]))
for name in TEXTS_COMMANDS:
    texts_app.command(name)(with_options(TEXTS_COMMANDS[name]))


def main() -> None:
    """Entry point of the `klscale` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an output of ASCII shows what it can
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    status: Any = 0
    try:
        app(prog_name="klscale")
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:  # while modules are imported
        status = 130
    except OSError as error:  # while help is printed
        status = _unwritten(error)
    status = _flushed(status)
    if status == 130:  # a thread may still download or read a model: nobody waits for it
        os._exit(130)
    sys.exit(status)


def _flushed(status: Any) -> Any:
    """The exit status when all that was printed is out: 141 where nobody reads it any more (`| head`), as of programs
    that the signal for this ends."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        status = status or _unwritten(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again, and complains
    return status


def _unwritten(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        return 141
    print_error(KlscaleError("Standard output could not be written.", f"{error.strerror or error}."))
    return 1


def version_callback(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"klscale {version('klscale')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=version_callback, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
