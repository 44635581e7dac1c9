"""The command `tenth`: a table of sub-commands, each imported when it is called."""

from __future__ import annotations

import io
import os
import sys
import traceback
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core

from tenth import __version__
from tenth.commands.interrupts import end, listen
from tenth.errors import TenthError

# in the order of a first acquaintance; `chat` is the function `command` of `chat_command.py`
COMMANDS = (
    *"chat run serve cluster key batch show list pull rm upcycle carve train plot".split(),
    *"profile profiles health verify export quantize pack synth tokenizer tokenize check bench".split(),
)


class _Group(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"tenth.commands.{cmd_name}_command")
        app = typer.Typer(add_completion=False)
        app.command(name=cmd_name)(module.command)
        return typer.main.get_command(app)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except BrokenPipeError:
            raise  # typer ends quietly, with 1, as `main` does where the pipe breaks behind the last line
        except (TenthError, MemoryError, OSError) as error:
            if ctx.params.get("debug"):
                traceback.print_exc()
            print(f"tenth: {_one_line(error)}", file=sys.stderr)
            raise typer.Exit(2) from None


def _one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "this machine has not enough memory for that"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


app = typer.Typer(cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tenth {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Run sparse mixture-of-experts language models, and see what the experts do."""


def main() -> None:
    """Entry point: an error is one line and exit code 2, an interrupt is 130, a reader that left early 1."""
    listen()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without a model's characters shows question marks
    try:
        try:
            app()
        finally:
            end()
            _flush()
    except KeyboardInterrupt:  # between the command and here: the interpreter would kill itself with the signal
        raise SystemExit(130) from None


def _flush() -> None:
    """Write out what is left; the interpreter, shutting down, would complain of a reader that has left."""
    if sys.stdout is None:  # closed by the caller
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
