"""The file of an artefact.

A safetensors file whose tensors are named `layers.{i}.{part}`: `neurons` (int16 or int32), `router.rows` and
`router.bias` (bfloat16), and of every delta `{matrix}.outer`, `{matrix}.inner` (int8) and `{matrix}.scale` (float32).
Its metadata say in JSON how the model was carved, and the hash of the file that it was carved from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tenth.errors import FileFormatError, RequestError, WeightsError
from tenth.files import write_whole
from tenth.train.artefact import Artefact, Delta
from tenth.train.carve import CarvedLayer, CarveOptions

ARTEFACT_NAME = "carving.safetensors"
"""The name in the folder of a carved model."""
_FORMAT = "tenth-carving-1"


def save_artefact(artefact: Artefact, path: Path) -> int:
    """Write the file, whole or not at all, the same bytes every time; returns how many. MachineError if it cannot."""
    tensors: dict[str, Tensor] = {}
    for index, (layer, deltas) in enumerate(zip(artefact.layers, artefact.deltas, strict=True)):
        prefix = f"layers.{index}"
        tensors[f"{prefix}.neurons"] = layer.neurons_F.to(torch.int32 if _wide(layer.neurons_F) else torch.int16)
        if layer.rows_ED is not None and layer.bias_E is not None:
            tensors[f"{prefix}.router.rows"] = layer.rows_ED.bfloat16()
            tensors[f"{prefix}.router.bias"] = layer.bias_E.bfloat16()
        for name, delta in deltas.items():
            tensors |= {f"{prefix}.{name}.{part}": getattr(delta, part) for part in ("outer", "scale", "inner")}
    about = {"format": _FORMAT, "source": artefact.source, "options": asdict(artefact.options)}
    data = save({name: t.cpu().contiguous() for name, t in tensors.items()}, {"carving": json.dumps(about)})
    write_whole(path, data)
    return len(data)


def _wide(neurons_F: Tensor) -> bool:
    return int(neurons_F.max()) > torch.iinfo(torch.int16).max


def open_artefact(path: Path) -> Artefact:
    """Read a file of `save_artefact`; FileFormatError where it is none, or broken."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("carving", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise WeightsError(f"{path}: there is no such file") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise FileFormatError(f"{path}: cannot be read as a carving: {str(error)[:100]}") from None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise FileFormatError(f"{path}: is not a carving of this version ({_FORMAT})")
    try:
        options = CarveOptions(**about["options"])
        count = 1 + max(int(name.split(".")[1]) for name in tensors)
        parts = [_of_layer(tensors, index) for index in range(count)]
        return Artefact(str(about["source"]), options, *map(tuple, zip(*parts, strict=True)))
    except (KeyError, TypeError, ValueError, IndexError, RequestError) as error:
        raise FileFormatError(f"{path}: is a broken carving: {str(error)[:100]}") from None


def _of_layer(tensors: Mapping[str, Tensor], index: int) -> tuple[CarvedLayer, dict[str, Delta]]:
    prefix = f"layers.{index}."
    mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    layer = CarvedLayer(mine["neurons"].long(), mine.get("router.rows"), mine.get("router.bias"))
    names = sorted(name.removesuffix(".scale") for name in mine if name.endswith(".scale"))
    return layer, {name: Delta(mine[f"{name}.outer"], mine[f"{name}.scale"], mine[f"{name}.inner"]) for name in names}
