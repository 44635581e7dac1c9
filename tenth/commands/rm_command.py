"""`tenth rm`: delete a model from the cache."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="owner/name, owner/name@revision, or `default`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model from the Hugging Face cache."""
    from tenth.errors import ModelNotFoundError
    from tenth.weights.bundled import remove_defaults
    from tenth.weights.hub import HubName, remove

    if name == "default":
        print(f"{remove_defaults() / 1e9:.2f} GB freed; it is made again when it is next used")
        return
    hub_name = HubName.parse(name)
    if hub_name is None or hub_name.kind is not None:
        raise ModelNotFoundError(f"{name}: not a hub name of the form owner/name or owner/name@revision")
    if not yes:
        typer.confirm(f"Delete {name} from the cache?", abort=True)
    print(f"{remove(hub_name) / 1e9:.2f} GB freed")
