"""`tenth pull`: fetch a model from the hub."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="owner/name, owner/name@revision or owner/name:Q4_K_M.")],
) -> None:
    """Download a model into the standard Hugging Face cache (what is there already is not fetched again)."""
    from tenth.errors import ModelNotFoundError
    from tenth.weights.hub import HubName, pull

    hub_name = HubName.parse(name)
    if hub_name is None:
        raise ModelNotFoundError(
            f"{name}: not a hub name of the form owner/name, owner/name@revision or owner/name:KIND"
        )
    print(pull(hub_name))
