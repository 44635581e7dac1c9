"""A model on disk, opened: its config, its tensors and their places, its tokenizer, its generation defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tenth.errors import FileFormatError, ModelNotFoundError, TensorError, TokenizerError
from tenth.model.config import ModelConfig
from tenth.model.huggingface import config_from_huggingface
from tenth.model.json_reader import read_json
from tenth.weights.generation import GenerationDefaults
from tenth.weights.gguf import GgufFile
from tenth.weights.gguf_config import config_from_gguf
from tenth.weights.names import Slot, gguf_slots, huggingface_slots, skipped, stacked_slots
from tenth.weights.packed import PackedFiles
from tenth.weights.packed_index import PACKED_NAME
from tenth.weights.safetensors_file import SafetensorsFiles
from tenth.weights.source import TensorSource
from tenth.weights.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open model: a context manager over `source`.

    `slots` says where each tensor of the file goes, `skipped` why some go nowhere, `ignored_keys` which keys of the
    config said nothing to us. `packed` is there where the weights are packed: they need no slots.
    """

    path: Path
    config: ModelConfig
    source: TensorSource
    slots: Mapping[str, Slot]
    skipped: Mapping[str, str]
    ignored_keys: tuple[str, ...]
    metadata: Mapping[str, Any]
    packed: PackedFiles | None = None

    @property
    def format(self) -> str:
        """`packed`, `gguf` or `safetensors`."""
        if self.packed is not None:
            return "packed"
        return "gguf" if self.metadata else "safetensors"

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; TokenizerError where it has none that we can use."""
        if self.metadata:
            return Tokenizer.from_gguf(self.metadata, str(self.path))
        if self.packed is not None and not (self.path / "tokenizer.json").exists():
            raise TokenizerError(f"{self.path}: has no tokenizer, as models of `tenth synth`: it takes no text")
        return Tokenizer.from_folder(self.path)

    def generation(self) -> GenerationDefaults:
        """Sampling defaults and end-of-text ids, from `generation_config.json` and `config.json`."""
        if self.metadata:
            return GenerationDefaults()
        return GenerationDefaults.from_folder(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.close()


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a packed or a Hugging Face folder, or a GGUF file (or a folder that holds one); nothing large is read.

    Raises ModelNotFoundError where there is none, ConfigError, FileFormatError or TensorError where it is malformed:
    a tensor without a place is an error that names it.
    """
    if path.is_dir() and not (path / "config.json").exists():
        return _open_gguf(_only_gguf(path))
    if (path / PACKED_NAME).exists():
        return _open_packed(path)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if path.suffix == ".safetensors":
        raise ModelNotFoundError(f"{path}: name the folder that holds it and its config.json")
    raise ModelNotFoundError(f"{path}: neither a folder with config.json nor a .gguf file")


def read_config(path: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config of a Hugging Face folder that need not hold weights, and the keys that were ignored."""
    return config_from_huggingface(read_json(path / "config.json"), str(path / "config.json"))


def _open_packed(path: Path) -> Checkpoint:
    config, ignored = read_config(path)
    files = PackedFiles(path, config)
    return Checkpoint(path, config, files.source, {}, {}, ignored, {}, files)


def _open_folder(path: Path) -> Checkpoint:
    config, ignored = read_config(path)
    source = SafetensorsFiles(path)
    try:
        _check_size(config, source, path)
        slots = huggingface_slots(config)
        stacked = {name: slot for name, slot in stacked_slots(config).items() if name in source.tensors}
        for name in stacked:
            part = name.rsplit(".", 1)[0]
            slots = {key: slot for key, slot in slots.items() if not _replaced(key, part, name)}
        return _checked(path, config, source, slots | stacked, ignored, {})
    except BaseException:
        source.close()
        raise


def _replaced(key: str, table: str, stacked: str) -> bool:
    """Whether a stacked tensor holds what this per-expert name would."""
    names = ("down_proj",) if stacked.endswith("down_proj") else ("gate_proj", "up_proj")
    return key.startswith(table + ".") and key.split(".")[-2] in names


def _only_gguf(folder: Path) -> Path:
    files = sorted(p for p in folder.glob("*.gguf") if "-of-" not in p.name or "-00001-of-" in p.name)
    if len(files) == 1:
        return files[0]
    if not files:
        raise ModelNotFoundError(f"{folder}: holds neither config.json nor a .gguf file")
    raise ModelNotFoundError(
        f"{folder}: holds {len(files)} .gguf files, name one of {', '.join(p.name for p in files)}"
    )


def _open_gguf(path: Path) -> Checkpoint:
    source = GgufFile(path)
    try:
        shapes = {name: info.shape for name, info in source.tensors.items()}
        factors = source.read("rope_freqs.weight") if "rope_freqs.weight" in shapes else None
        config, ignored = config_from_gguf(source.metadata, shapes, factors, str(path))
        _check_size(config, source, path)
        return _checked(path, config, source, gguf_slots(config), ignored, source.metadata)
    except BaseException:
        source.close()
        raise


def _check_size(config: ModelConfig, source: TensorSource, path: Path) -> None:
    """A config that asks for far more than the files hold is refused before anything of its size is built."""
    held = sum(math.prod(info.shape) for info in source.tensors.values())
    if config.parameters.total > 4 * held + 1_000_000:
        raise FileFormatError(
            f"{path}: the config asks for {config.parameters.total:,} parameters, the files hold {held:,}"
        )


def _checked(
    path: Path,
    config: ModelConfig,
    source: TensorSource,
    slots: Mapping[str, Slot],
    ignored: tuple[str, ...],
    metadata: Mapping[str, Any],
) -> Checkpoint:
    left_out: dict[str, str] = {}
    for name in source.tensors:
        reason = None if name in slots else skipped(config, name)
        if reason is not None:
            left_out[name] = reason
        elif name not in slots:
            raise TensorError(f"{path}: tensor {name!r} has no place in a {config.model_type} of this config")
    return Checkpoint(path, config, source, slots, left_out, ignored, metadata)
