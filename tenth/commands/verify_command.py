"""`tenth verify`: may one model take another's place?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenth.commands import options as o

if TYPE_CHECKING:
    from tenth.commands.progress import Report
    from tenth.observe.parity import VerifyOptions
    from tenth.observe.parity_gate import Gate

_PARITY = "Parity"
TOKENS, CONTEXT = 4096, 512
"""Of the corpus, and of a window, where nothing else is said."""


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="The model that is trusted: a path, hub name, or an address.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The one that is to take its place.")],
    corpus: Annotated[
        list[str],
        typer.Option(
            "--corpus",
            metavar="FILE",
            help='Text, JSON lines with "text" or "messages", token files (may be given several times).',
        ),
    ],
    gate: Annotated[Path | None, typer.Option("--gate", metavar="FILE", help="Bars in a TOML file.")] = None,
    out: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write an HTML page.")] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=2, help="So many of the corpus, from its beginning.", rich_help_panel=_PARITY)
    ] = TOKENS,
    window: Annotated[
        int, typer.Option("--context", min=2, help="Tokens that see each other.", rich_help_panel=_PARITY)
    ] = CONTEXT,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Layers on A's input, and B with A's routing, on all tokens instead of a sixteenth of each window.",
            rich_help_panel=_PARITY,
        ),
    ] = False,
    greedy_prompts: Annotated[
        int,
        typer.Option("--greedy-prompts", min=0, help="Beginnings of documents to go on from.", rich_help_panel=_PARITY),
    ] = 8,
    greedy_tokens: Annotated[
        int, typer.Option("--greedy-tokens", min=0, help="Tokens of each; 0 for none.", rich_help_panel=_PARITY)
    ] = 48,
    questions: Annotated[
        Path | None,
        typer.Option(
            "--questions",
            metavar="FILE",
            help='JSON lines with "prompt" or "messages", and "expected" or "expected_regex".',
            rich_help_panel=_PARITY,
        ),
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", min=1, help="Of an answer to a question.", rich_help_panel=_PARITY)
    ] = 128,
    api_key: Annotated[
        str | None,
        typer.Option("--api-key", envvar="TENTH_API_KEY", help="For a model at an address.", show_default=False),
    ] = None,
    dtype: o.Dtype = "auto",
    backend: o.Backend = "auto",
    threads: o.Threads = None,
    json: o.Json = False,
) -> None:
    """Measure how far B is from A on a corpus, and say whether B may take its place.

    Exit code 0: passed, or no gate; 1: not passed, or a model gives NaN or infinity; 2: an error.
    """
    from rich.console import Console

    from tenth.commands.progress import progress_bars
    from tenth.files import check_page
    from tenth.observe.figure_file import check_format
    from tenth.observe.parity import VerifyOptions, passed
    from tenth.observe.parity_gate import read_gate
    from tenth.observe.parity_html import write_page
    from tenth.observe.parity_report import render

    bars = None if gate is None else read_gate(gate)
    if out is not None:
        check_format(out, (".html",))
        check_page(out)
    chosen = VerifyOptions(1.0 if full else 1 / 16, greedy_prompts, greedy_tokens, answer_tokens)
    with progress_bars(quiet=json) as report:
        found = measured(
            (a, b), corpus, questions, chosen, report, tokens=tokens, context=window, gate=bars, key=api_key,
            models={"dtype": dtype, "backend": backend, "threads": threads},
        )  # fmt: skip
    if out is not None:
        write_page(found, out)
    if json:
        import json as json_module

        print(json_module.dumps(found))
    else:
        Console(highlight=False).print(render(found))
    if not passed(found):
        raise typer.Exit(1)


def measured(
    names: tuple[str, str],
    corpus: list[str],
    questions: Path | None,
    chosen: VerifyOptions,
    report: Report,
    *,
    tokens: int,
    context: int,
    gate: Gate | None,
    key: str | None,
    models: dict[str, Any],
) -> dict[str, Any]:
    """The figures of two models by name, and a verdict; `models` are `dtype`, `backend` and `threads` of both."""
    from contextlib import ExitStack

    from tenth.api import resolve
    from tenth.api.model import chosen_dtype
    from tenth.errors import RequestError
    from tenth.observe.corpora import TextIds
    from tenth.observe.http_client import Client, is_address
    from tenth.observe.parity import verify
    from tenth.observe.parity_corpus import read_corpus, read_questions
    from tenth.observe.parity_remote import verify_server
    from tenth.observe.parity_server import Server
    from tenth.observe.parity_sides import opened, shared_vocabulary

    here = [name for name in names if not is_address(name)]
    if not here:
        raise RequestError("both models are addresses; one must lie here, as its tokenizer makes the tokens")
    kind = chosen_dtype(models.pop("dtype"))
    packed = kind == "auto" and models["backend"] != "reference"
    with ExitStack() as stack:
        sides = [
            stack.enter_context(opened(resolve(name, report, packed=packed), name, dtype=kind, **models))
            for name in here
        ]
        vocabulary = shared_vocabulary(sides[0], sides[-1])
        ids_of = TextIds(next((side.tokenizer for side in sides if side.tokenizer), None), sides[0].name)
        size = min(context, *(side.config.context_length for side in sides))
        read = read_corpus(corpus, ids_of, vocabulary=vocabulary, tokens=tokens, context=size)
        asked = [] if questions is None else read_questions(questions, ids_of)
        if len(here) == 2:
            return verify(sides[0], sides[1], read, chosen, questions=asked, gate=gate, report=report)
        (address,) = set(names) - set(here)
        server, last = Server(Client(address, key)), address == names[1]
        return verify_server(
            sides[0], server, read, chosen, server_is_b=last, questions=asked, gate=gate, report=report
        )
