"""From a decoder to a Hugging Face folder: sharded safetensors with an index, and config.json. All of it or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tenth.errors import MachineError, WeightsError
from tenth.files import check_place
from tenth.kernels.packed import PackedExpertTable, PackedWeight
from tenth.model.decoder import Decoder
from tenth.model.huggingface_export import config_to_huggingface, exportable_as
from tenth.weights.generation import GenerationDefaults
from tenth.weights.load import Progress
from tenth.weights.names import huggingface_slots
from tenth.weights.safetensors_file import INDEX_NAME, SINGLE_NAME
from tenth.weights.tokenizer import Tokenizer

_SHARD_BYTES = 2 << 30
_CONFIG = "config.json"


def save_model(
    decoder: Decoder,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    generation: GenerationDefaults | None = None,
    model_type: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a folder that `transformers` loads where it has the architecture, with every value's bits as they are.

    `model_type` asks for a certain class (default: the config's own); ConfigError where that class would compute
    something else, WeightsError where weights are packed. The folder appears whole or not at all; one that exists and
    is not empty is refused.
    """
    if any(isinstance(part, PackedWeight | PackedExpertTable) for part in decoder.modules()):
        raise WeightsError("packed weights are not written as floats: save the model that they were made from")
    config = exportable_as(decoder.config, model_type or decoder.config.model_type)
    raw = config_to_huggingface(config)
    with new_folder(folder) as place:
        (place / _CONFIG).write_text(json.dumps(raw | _dtype_key(decoder, raw), indent=2) + "\n")
        _write_tensors(decoder, place, progress)
        if tokenizer is not None:
            tokenizer.save(place)
        if generation is not None:
            (place / "generation_config.json").write_text(generation.to_json())


def _dtype_key(decoder: Decoder, raw: dict[str, Any]) -> dict[str, str]:
    # our own config form holds our fields only
    return {"dtype": str(decoder.dtype).removeprefix("torch.")} if "architectures" in raw else {}


def check_new_folder(folder: Path) -> None:
    """WeightsError where `folder` exists and is not empty, MachineError where it cannot be made: before any work."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(f"{folder}: exists and is not an empty folder; choose another name or remove it first")
    check_place(folder / "file")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end, or vanishes if anything fails.

    WeightsError where `folder` exists and is not empty; MachineError where the disk refuses.
    """
    check_new_folder(folder)
    folder = folder.resolve()
    exists = folder.exists()  # it may be a mount point or the current folder: then it is filled, not replaced
    place = (folder if exists else folder.parent) / f".tenth-{uuid4().hex}"
    try:
        place.mkdir(parents=True)
        yield place
        if exists:
            # config.json last: without it the folder is not yet a model
            for path in sorted(place.iterdir(), key=lambda path: path.name == _CONFIG):
                path.rename(folder / path.name)
        else:
            place.rename(folder)
    except (OSError, SafetensorError) as error:
        raise MachineError(f"{folder}: cannot be written: {str(error)[:200]}") from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write_tensors(decoder: Decoder, place: Path, progress: Progress | None) -> None:
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    slots = huggingface_slots(decoder.config)
    shards = _shards({name: slot.view(parameters[slot.parameter]) for name, slot in slots.items()})
    total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    weight_map: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, 1):
        name = SINGLE_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({k: t.detach().cpu().contiguous() for k, t in shard.items()}, place / name, {"format": "pt"})
        (place / name).chmod((place / _CONFIG).stat().st_mode)  # the library writes for the owner alone
        weight_map |= dict.fromkeys(shard, name)
        done += sum(tensor.nbytes for tensor in shard.values())
        if progress is not None:
            progress(done, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (place / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > _SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards
