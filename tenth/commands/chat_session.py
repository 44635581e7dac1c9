"""The turns of a chat in the terminal, and its commands."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console

from tenth.api import Generation, Model
from tenth.commands.answer import answer_once, print_cache, print_experts, print_speed, print_stream
from tenth.commands.interrupts import heard
from tenth.errors import TenthError

_HELP = """\
/help      this list
/experts   which experts worked on the last answer
/reset     forget the chat and begin anew
/exit      leave (Ctrl-D does too)
Ctrl-C stops an answer and keeps the chat. A line that ends in \\ goes on in the next."""


class ChatSession:
    """A chat with a model: its messages, and the last answer."""

    def __init__(self, model: Model, system: str | None, options: dict[str, Any]) -> None:
        self._model, self._options = model, options
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)
        self._last: Generation | None = None

    def once(self, question: str, *, experts: bool, json: bool) -> None:
        """Answer one question."""
        messages = [*self._messages, {"role": "user", "content": question}]
        stream = self._model.stream(messages, routing="full", **self._options)
        answer_once(self._model, stream, experts=experts, json=json)

    def run(self) -> None:
        """Read and answer until the input ends."""
        _line_editing()
        Console(stderr=True).print("[dim]/help lists the commands[/dim]")
        while (line := _read_line()) is not None:
            if not line.strip():
                continue
            if line.startswith("/"):
                if line.split()[0] in ("/exit", "/quit"):
                    return
                self._command(line)
            else:
                self._turn(line)

    def _command(self, line: str) -> None:
        match line.split()[0]:
            case "/help":
                print(_HELP)
            case "/reset":
                self._messages = list(self._opening)
                print("The chat begins anew.")
            case "/experts" if self._last is not None:
                print_experts(self._last)
            case "/experts":
                print("Nothing was answered yet.")
            case unknown:
                print(f"{unknown} is not a command; /help lists them")

    def _turn(self, line: str) -> None:
        """One question and its answer; a request that cannot be served leaves the chat as it was."""
        asked = [*self._messages, {"role": "user", "content": line}]
        try:
            result = print_stream(self._model.stream(asked, routing="full", **self._options))
        except TenthError as error:
            print(f"tenth: {error}", file=sys.stderr)
            return
        except KeyboardInterrupt:  # before the first word
            heard()
            print("[stopped]")
            return
        self._messages = [*asked, {"role": "assistant", "content": result.text}]
        self._last = result
        print_speed(result)
        print_cache(self._model)


def _line_editing() -> None:
    try:
        import readline  # noqa: F401  (importing it gives input() history and editing)
    except ImportError:  # a Python built without it: plain lines
        return


def _read_line() -> str | None:
    """A line of input, with its continuations; None at the end."""
    parts: list[str] = []
    while True:
        try:
            line = input("... " if parts else ">>> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            heard()
            print("\n(Ctrl-D leaves)")
            parts = []
            continue
        if not line.endswith("\\"):
            return "\n".join([*parts, line])
        parts.append(line[:-1])
