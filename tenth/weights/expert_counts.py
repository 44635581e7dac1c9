"""How often experts were used, kept in a file: with it a cache of experts starts with those that are used most.

JSON: `{"version": 1, "layers": [{"steps": 12, "uses": [3, 0, ...]}, ...]}`, an entry for each sparse layer in order;
`uses` counts the steps (of any number of tokens) that asked for each expert. A routing profile, which says the same of
steps of one token, is read too, and never added to.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from tenth.errors import FileFormatError, RequestError
from tenth.files import write_whole
from tenth.kernels.cpu.expert_cache import ExpertCache, LayerUses
from tenth.routing.profile_file import is_profile, read_profile

_VERSION = 1


def seed_from(cache: ExpertCache, path: Path) -> None:
    """Start a cache with the experts that a file counts most uses of.

    FileFormatError for a file that holds no counts; RequestError where it is not there or is of another model.
    """
    cache.seed(_fitting(cache, path))


def add_counts(cache: ExpertCache, path: Path) -> None:
    """Add what a cache was asked for to a file, which is made where there is none. Errors: as `seed_from`.

    A routing profile stays as it is: it is of tokens, not of steps.
    """
    if is_profile(path):
        return
    layers = cache.uses
    if path.exists():
        layers = [
            LayerUses(old.steps + new.steps, [a + b for a, b in zip(old.uses, new.uses, strict=True)])
            for old, new in zip(_fitting(cache, path), layers, strict=True)
        ]
    text = json.dumps({"version": _VERSION, "layers": [asdict(layer) for layer in layers]})
    write_whole(path, text)


def _fitting(cache: ExpertCache, path: Path) -> list[LayerUses]:
    layers, wanted = _read(path), cache.uses
    for old, new in zip(layers, wanted, strict=False):
        if len(old.uses) != len(new.uses):
            raise RequestError(f"{path}: counts {len(old.uses)} experts in a layer, the model has {len(new.uses)}")
    if len(layers) != len(wanted):
        raise RequestError(f"{path}: counts experts of {len(layers)} layers, the model has {len(wanted)} sparse ones")
    return layers


def _read(path: Path) -> list[LayerUses]:
    if is_profile(path):
        counts = read_profile(path).counts
        return [LayerUses(counts.tokens, uses) for uses in counts.counts_LE.tolist()]
    try:
        file = json.loads(path.read_bytes())
        layers = [LayerUses(layer["steps"], layer["uses"]) for layer in file["layers"]]
        good = file["version"] == _VERSION and all(_is_count(layer) for layer in layers)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise FileFormatError(f"{path}: holds no counts of experts as --expert-counts writes them (version {_VERSION})")
    return layers


def _is_count(layer: LayerUses) -> bool:
    """Whole numbers, no expert used in more steps than there were."""
    if type(layer.steps) is not int or type(layer.uses) is not list:
        return False
    return all(type(count) is int and 0 <= count <= layer.steps for count in layer.uses)
