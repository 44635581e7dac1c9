"""Checkpoints of a training run: written behind its back, whole or not at all, the last few kept."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from threading import Thread
from typing import Any, Self
from uuid import uuid4

from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from tenth.errors import FileFormatError, MachineError, TensorError, WeightsError
from tenth.train.run_image import FileImage, Pace
from tenth.train.run_storage import RunReader, RunWriter, state_text

__all__ = ["RunCheckpoints"]

_WHOLE = re.compile(r"step-(\d{8,})")
_PARTIAL = ".partial-"
_LOCK = ".lock"


class RunCheckpoints:
    """The checkpoints in `folder` (made where missing), of which the newest `keep` stay: a context manager that waits.

    Each is a folder `step-00000120` with `tensors.safetensors` and `state.json`. Looking and loading change nothing on
    the disk; one object at a time may write: it has to `take` the folder, which `prepare` and `save` see to. `share` is
    the part of one core that writing takes while training goes on.
    """

    def __init__(self, folder: Path, keep: int, *, share: float = 0.03) -> None:
        self.folder, self.keep, self.share = folder, keep, share
        self._image: FileImage | None = None
        self._lock: FileIO | None = None
        self._thread: Thread | None = None
        self._pace = Pace(share)
        self._failure: BaseException | None = None
        self._verified: set[int] = set()
        self._broken: set[int] = set()
        # said at every save and load by a single process, which is what this is for
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)

    def take(self) -> None:
        """Take the folder for this object until `close`, and remove what a killed process left in it.

        MachineError where another process has it, or where it cannot be written.
        """
        if self._lock is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileIO(self.folder / _LOCK, "a")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            for left in self.folder.glob(f".*{_PARTIAL}*"):
                shutil.rmtree(left)
        except BlockingIOError:
            raise MachineError(f"{self.folder}: another run writes its checkpoints here; end it first") from None
        except OSError as error:
            raise MachineError(f"{self.folder}: cannot be written: {error.strerror}") from None
        self._lock = lock

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the folder, and memory for a copy of tensors like these: what the first `save` would do else.

        MachineError as `take`, and where memory is lacking.
        """
        self.take()
        if self._image is None or not self._image.fits(tensors):
            self._image = None  # before the next one is made: both may not fit
            self._image = FileImage(tensors)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Begin a checkpoint of tensors (on any device) and a state that JSON can hold, as they are now.

        Returns when they are copied aside. The one before is awaited first; where that failed, its error is raised
        here, once, and nothing of this one is done: `wait` before tells the two apart.
        """
        self.wait()
        text = state_text(state)
        self.prepare(tensors)
        assert self._image is not None
        self._image.fill(tensors)
        self._verified.discard(step)
        beside_gpu = any(tensor.device.type != "cpu" for tensor in tensors.values())  # then a core is free
        self._pace = Pace(1.0 if beside_gpu else self.share)
        # a daemon: a program that does not wait ends at once, and loses no more than this checkpoint
        self._thread = Thread(target=self._write, args=(step, self._image, text), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the last one is on the disk, from now on at full speed; MachineError where it failed (a full disk).

        Nothing is left of one that failed, those before it are untouched, and `save` may be called again.
        """
        if self._thread is not None:
            self._pace.hurry()
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @property
    def writing(self) -> bool:
        """Whether one is being written now."""
        return self._thread is not None and self._thread.is_alive()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, oldest first, by their names alone."""
        if not self.folder.is_dir():
            return []
        found = (_WHOLE.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, every byte verified; warns of each broken one it passes over.

        WeightsError where one may be whole but cannot be read now (permissions, open files), or is of another version:
        to go on before it would undo what it holds.
        """
        for step in reversed(self.steps()):
            try:
                with self._open(step) as reader:
                    self._verify(step, reader)
                return step
            except WeightsError as error:
                if not _is_damage(error):
                    raise
                self._broken.add(step)
                warnings.warn(f"checkpoint {self._path(step).name} is broken and passed over: {error}", stacklevel=2)
        return None

    def load(self, step: int, tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Fill the given tensors in place with a checkpoint's, bit for bit, and return its state.

        Raises WeightsError where there is none or it is broken, TensorError naming the first tensor that the
        checkpoint lacks, has in another shape or type, or has beyond those given; nothing is filled then.
        """
        with self._open(step) as reader:
            reader.check(tensors)
            self._verify(step, reader)
            try:
                state_dict_loader.load(dict(tensors), storage_reader=reader, no_dist=True)
            except CheckpointException as error:
                raise _cause(error) from None
            return reader.state.state

    def close(self) -> None:
        """Wait, as `wait` does, and leave the folder to others."""
        try:
            self.wait()
        finally:
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except MachineError as error:
            if kind is None:
                raise
            warnings.warn(str(error), stacklevel=2)  # what ends the run matters more

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _open(self, step: int) -> RunReader:
        path = self._path(step)
        if not path.is_dir():
            there = ", ".join(map(str, self.steps())) or "none"
            raise WeightsError(f"{path}: no such checkpoint; there are those of steps: {there}")
        reader = RunReader(path)
        if reader.state.step != step:
            reader.close()
            raise FileFormatError(f"{path}: holds step {reader.state.step}: its folder was renamed")
        return reader

    def _verify(self, step: int, reader: RunReader) -> None:
        """Read every byte, once for each checkpoint."""
        if step not in self._verified:
            reader.verify()
            self._verified.add(step)

    def _write(self, step: int, image: FileImage, state: str) -> None:
        """What the thread does: a folder of another name, its files, then its name; a failure is kept for `wait`."""
        place = self._partial(step)
        try:
            place.mkdir()
            writer = RunWriter(place, image, step, state, self._pace)
            state_dict_saver.save(dict(image.tensors), storage_writer=writer, no_dist=True)
            _sync_folder(place)
            self._publish(place, step)
        except BaseException as error:
            cause = _cause(error)
            if isinstance(cause, OSError):
                cause = MachineError(
                    f"{self._path(step)}: cannot be written: {cause.strerror}; checkpoints before it are untouched"
                )
            self._failure = cause
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _publish(self, place: Path, step: int) -> None:
        if self._path(step).exists():  # one that was passed over
            self._remove(step)
        place.rename(self._path(step))
        self._broken.discard(step)
        _sync_folder(self.folder)
        behind = [other for other in self.steps() if other <= step and other not in self._broken]
        for other in self.steps():
            if other in self._broken or other in behind[: -self.keep]:  # what lies ahead and was not looked at stays
                self._remove(other)

    def _remove(self, step: int) -> None:
        """First the name: half a checkpoint must not have it."""
        doomed = self._path(step).rename(self._partial(step))
        shutil.rmtree(doomed)

    def _partial(self, step: int) -> Path:
        return self.folder / f".step-{step:08d}{_PARTIAL}{uuid4().hex}"


def _is_damage(error: WeightsError) -> bool:
    """Whether bytes are missing or not those that were written."""
    return isinstance(error, FileFormatError | TensorError) or isinstance(error.__cause__, FileNotFoundError)


def _cause(error: BaseException) -> BaseException:
    """What went wrong inside DCP, which wraps it by rank."""
    return error.failures[0][0] if isinstance(error, CheckpointException) else error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
