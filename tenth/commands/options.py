"""Options that several commands share, and the settings they become."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tenth.commands.config_file import judged

if TYPE_CHECKING:
    from tenth.routing.limit import ExpertLimit

_SAMPLING = "Sampling"
_MODEL = "Model"


def size(option: str, text: str) -> int:
    """Bytes of an option's size such as 8GB; RequestError for anything else."""
    from tenth.weights.budget import memory_bytes

    return memory_bytes(text, option)


def limit_of(expert_mass: float | None, max_experts: int | None) -> ExpertLimit | None:
    """The two options as one; None where neither was given."""
    from tenth.routing.limit import ExpertLimit

    return None if expert_mass is max_experts is None else ExpertLimit(expert_mass, max_experts)


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A path, a hub name (owner/name, owner/name:Q4_K_M), `default` or `default-dense`."
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", "-t", help="0 takes the likeliest token.", rich_help_panel=_SAMPLING),
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Keep the k likeliest; 0 all.", rich_help_panel=_SAMPLING)]
TopP = Annotated[
    float | None, typer.Option("--top-p", help="Keep the likeliest that make up this share.", rich_help_panel=_SAMPLING)
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", help="Drop what is less likely than this share of the best.", rich_help_panel=_SAMPLING),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option("--repetition-penalty", help="Above 1 weakens all tokens seen so far.", rich_help_panel=_SAMPLING),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option("--presence-penalty", help="Taken from generated tokens, once.", rich_help_panel=_SAMPLING),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option("--frequency-penalty", help="Taken from generated tokens, each time.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="The same seed, the same text.", rich_help_panel=_SAMPLING, show_default=False),
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-n", help="Stop after so many tokens.", rich_help_panel=_SAMPLING)
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", help="Stop before this text (may be given several times).", rich_help_panel=_SAMPLING),
]
Dtype = Annotated[
    str, typer.Option("--dtype", help="auto, bfloat16, float32, float16, float64.", rich_help_panel=_MODEL)
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.", rich_help_panel=_MODEL)]
Backend = Annotated[
    str,
    typer.Option("--backend", help="auto, reference, or cpu: native, for packed models.", rich_help_panel=_MODEL),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Threads that compute.", show_default="one a core", rich_help_panel=_MODEL),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="What a packed model may take, such as 8GB: experts beyond it stay on disk.",
        callback=judged(partial(size, "--memory")),
        rich_help_panel=_MODEL,
    ),
]
ExpertCounts = Annotated[
    Path | None,
    typer.Option(
        "--expert-counts",
        metavar="FILE",
        help="With --memory: begin with the experts used most by this file, to which uses are added, or by a profile.",
        rich_help_panel=_MODEL,
    ),
]
Template = Annotated[
    Path | None,
    typer.Option("--chat-template", help="A Jinja file instead of the model's own template.", rich_help_panel=_MODEL),
]
KV = Annotated[
    str,
    typer.Option(
        "--kv", help="Keys and values in the cache: bf16, or int8 in half the memory.", rich_help_panel=_MODEL
    ),
]
ExpertMass = Annotated[
    float | None,
    typer.Option(
        "--expert-mass",
        help="Of a token's experts only the likeliest that make up this share.",
        callback=judged(lambda mass: limit_of(mass, None)),
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
MaxExperts = Annotated[
    int | None,
    typer.Option(
        "--max-experts",
        help="So many experts a token at most.",
        callback=judged(lambda most: limit_of(None, most)),
        rich_help_panel=_MODEL,
        show_default="the model's",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Experts = Annotated[bool, typer.Option("--experts", help="Print which experts worked, layer by layer.")]


def refuse(context: typer.Context, names: Collection[str], action: str) -> None:
    """RequestError where one of these options was given on the command line: `action` does not heed it."""
    from tenth.errors import RequestError

    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is not None and source.name == "COMMANDLINE":
            raise RequestError(f"{option.opts[0]} does nothing with {action}: leave one of them out")


def given(**options: Any) -> dict[str, Any]:
    """The options that were named on the command line; the rest is left to the model's defaults.

    RequestError for a value that no model could take, before a model is loaded.
    """
    from tenth.api.options import Options, Settings

    named = {name: value for name, value in options.items() if value not in (None, [])}
    Settings().updated(cast(Options, named))
    return named
