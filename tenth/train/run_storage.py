"""A run's tensors and state on disk, for torch.distributed.checkpoint: `tensors.safetensors` and `state.json`.

DCP plans what is saved and loaded; the bytes and the metadata are ours, through its storage interface. Its own writers
do not fit: `FileSystemWriter` keeps the metadata in a pickle, and `HuggingFaceStorageWriter` joins all bytes once more
in memory, and holds the interpreter meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from tenth.errors import FileFormatError, TensorError, WeightsError
from tenth.train.run_image import CHUNK_BYTES, KINDS, FileImage, Pace, write_synced
from tenth.weights.safetensors_file import SafetensorsFiles, parse_object
from tenth.weights.source import DTYPES, HEADER_LIMIT, OpenFile, quoted

__all__ = ["RunReader", "RunState", "RunWriter", "StoredTensor", "read_state", "state_text"]

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint: its type by the file's name, its shape, the SHA-256 of its bytes."""

    kind: str
    shape: tuple[int, ...]
    sha256: str

    def __str__(self) -> str:
        """For an error: type and shape."""
        return f"{self.kind} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class RunState:
    """What `state.json` says, checked against its own hash."""

    step: int
    state: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def read_state(folder: Path) -> RunState:
    """Read a checkpoint's `state.json`; FileFormatError where it is not whole.

    WeightsError where it is missing or cannot be read, and for another version: those bytes are as they were written.
    """
    path = folder / _STATE
    file = OpenFile(path)
    try:
        if file.size > HEADER_LIMIT:
            raise FileFormatError(f"{path}: {file.size} bytes, {HEADER_LIMIT} are the limit")
        raw = parse_object(file.read(0, file.size), path, "state")
    finally:
        file.close()
    if raw.pop("hash", None) != _hash(raw):
        raise FileFormatError(f"{path}: does not agree with its own hash")
    if raw.get("version") != _VERSION:
        raise WeightsError(f"{path}: is of version {quoted(raw.get('version'))}, this program reads {_VERSION}")
    try:
        tensors = {name: StoredTensor(t["dtype"], tuple(t["shape"]), t["sha256"]) for name, t in raw["tensors"].items()}
        return RunState(raw["step"], raw["state"], tensors)
    except (KeyError, TypeError, AttributeError):
        raise FileFormatError(f"{path}: lacks step, state or tensors") from None


def state_text(state: Mapping[str, Any]) -> str:
    """The state as JSON, as it is now; TypeError for what JSON would not give back."""
    _check_keys(state)
    return json.dumps(state)


class RunWriter(StorageWriter):
    """Writes a checkpoint's two files into a folder, from tensors that lie in a FileImage."""

    def __init__(self, folder: Path, image: FileImage, step: int, state: str, pace: Pace) -> None:
        self._folder, self._image, self._pace = folder, image, pace
        self._step, self._state = step, state

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between two saves."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The folder is there already."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Hash every tensor, then write the file that they lie in."""
        self._pace.start()
        results = []
        for item in plan.items:
            digest = self._image.hash(item.index.fqn, self._pace)
            results.append(WriteResult(item.index, item.tensor_storage_size() or 0, digest))
        self._image.write(self._folder / _TENSORS, self._pace)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write `state.json`: DCP's metadata, the hashes and the run's state."""
        digests = {result.index.fqn: result.storage_data for part in results for result in part}
        tensors = {}
        for name, info in metadata.state_dict_metadata.items():
            assert isinstance(info, TensorStorageMetadata)
            kind = KINDS[info.properties.dtype]
            tensors[name] = {"dtype": kind, "shape": list(info.size), "sha256": digests[name]}
        state = json.loads(self._state)
        raw = {"version": _VERSION, "step": self._step, "state": state, "tensors": tensors}
        write_synced(self._folder / _STATE, (json.dumps({"hash": _hash(raw), **raw}) + "\n").encode())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Writers are given, never found by a name."""
        return False


class RunReader(StorageReader):
    """Reads one checkpoint: a context manager. Raises WeightsError where its files are missing or disagree."""

    def __init__(self, folder: Path) -> None:
        self.state = read_state(folder)
        self._files = SafetensorsFiles(folder / _TENSORS)
        try:
            found = {name: (info.kind, info.shape) for name, info in self._files.tensors.items()}
            listed = {name: (tensor.kind, tensor.shape) for name, tensor in self.state.tensors.items()}
            if found != listed:
                name = min(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
                raise TensorError(f"{folder}: {_TENSORS} and {_STATE} disagree about tensor {quoted(name)}")
        except BaseException:
            self._files.close()
            raise

    def verify(self) -> None:
        """FileFormatError, naming the tensor, where bytes are not those that were written."""
        file, buffer = OpenFile(self._files.path), memoryview(bytearray(CHUNK_BYTES))
        try:
            for name, info in self._files.tensors.items():
                state = hashlib.sha256()
                for begin in range(0, info.nbytes, CHUNK_BYTES):
                    part = buffer[: min(CHUNK_BYTES, info.nbytes - begin)]
                    file.read_into(part, info.offset + begin)
                    state.update(part)
                if state.hexdigest() != self.state.tensors[name].sha256:
                    raise FileFormatError(f"{info}: its bytes are not those that were written")
        finally:
            file.close()

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """TensorError, naming the first difference, where these are not the checkpoint's names, shapes and types."""
        where = self._files.path
        for name, tensor in tensors.items():
            stored = self.state.tensors.get(name)
            if stored is None:
                raise TensorError(f"{where}: has no tensor {quoted(name)}, which the run to be continued has")
            wanted = f"{KINDS.get(tensor.dtype, tensor.dtype)} {list(tensor.shape)}"
            if wanted != str(stored):
                raise TensorError(f"{where}: tensor {quoted(name)} is {stored}, the run to be continued has {wanted}")
        for name in self.state.tensors.keys() - tensors.keys():
            raise TensorError(f"{where}: tensor {quoted(name)} has no place in the run to be continued")

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between two loads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """DCP's metadata out of `state.json`: every tensor is one chunk."""
        return Metadata({name: _metadata(tensor) for name, tensor in self.state.tensors.items()})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The files are open already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors that the plan names, one at a time."""
        for item in plan.items:
            stored = self._files.read(item.storage_index.fqn)
            for axis, (begin, count) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                stored = stored.narrow(axis, begin, count)
            target = planner.resolve_tensor(item).detach()
            target.copy_(stored)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def close(self) -> None:
        """Let go of the files."""
        self._files.close()

    def __enter__(self) -> RunReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Readers are given, never found by a name."""
        return False


def _metadata(tensor: StoredTensor) -> TensorStorageMetadata:
    size = torch.Size(tensor.shape)
    chunk = ChunkStorageMetadata(offsets=torch.Size([0] * len(size)), sizes=size)
    return TensorStorageMetadata(TensorProperties(dtype=DTYPES[tensor.kind]), size, [chunk])


def _hash(raw: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def _check_keys(value: object) -> None:
    """JSON makes texts of other keys in silence, and the state would not come back as it was."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a run's state has the key {key!r}: JSON has texts only")
            _check_keys(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check_keys(part)
