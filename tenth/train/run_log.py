"""The log of a run: `log.jsonl`, one object a line, and TensorBoard's event files.

A line has `kind`: `step`, `evaluation`, `skip` or `unsaved`, and `step`, the steps of the optimiser done by then.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from tenth.errors import FileFormatError, MachineError

LOG_NAME = "log.jsonl"


class _Scalars(Protocol):
    """What is used of TensorBoard's writer."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class RunLog:
    """Appends to a run's log: a context manager. MachineError, naming the file, wherever the disk refuses.

    Lines behind `step` are of a part of the run that was lost: they are removed, all of them where it is None.
    """

    def __init__(self, folder: Path, step: int | None, *, tensorboard: bool) -> None:
        """MachineError where the folder cannot be written, or TensorBoard is asked for and not installed."""
        self.path, self._events = folder / LOG_NAME, folder / "tensorboard"
        with _writing(self.path):
            _truncate(self.path, step)
            self._file = self.path.open("a", encoding="utf-8")
        self._scalars = _scalars(self._events, step) if tensorboard else None

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line; numbers that JSON lacks become null."""
        with _writing(self.path):
            self._file.write(json.dumps(_plain(record), ensure_ascii=False) + "\n")
            self._file.flush()
        if self._scalars is not None:
            with _writing(self._events):
                for tag, value in scalars(record):
                    self._scalars.add_scalar(tag, value, record["step"])

    def flush(self) -> None:
        """Hand all to the disk: what comes before a checkpoint is not written again."""
        with _writing(self.path):
            os.fsync(self._file.fileno())
        if self._scalars is not None:
            with _writing(self._events):
                self._scalars.flush()

    def close(self) -> None:
        """End both."""
        try:
            with _writing(self.path):
                self._file.close()
        finally:
            if self._scalars is not None:
                with _writing(self._events):
                    self._scalars.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except MachineError:
            if kind is None:  # else: what ends the run matters more
                raise


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that a killed run left half written is passed over. FileFormatError otherwise."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror}") from None
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or type(record.get("step")) is not int:
                raise ValueError("holds no object with a step")
        except ValueError as error:
            raise FileFormatError(f"{path}:{number}: is no line of a run's log: {str(error)[:80]}") from None
        records.append(record)
    return records


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a record with their places: `layers/3/max_vio`, `domains/code/loss`."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and key != "step":
            yield (prefix or f"{record.get('kind', 'run')}/") + key, float(value)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(f"{path}: cannot be written: {error.strerror or error}") from None


def _truncate(path: Path, step: int | None) -> None:
    """Keep the lines up to `step`; the new file replaces the old one at once."""
    if not path.exists():
        return
    kept = [record for record in read_log(path) if record["step"] <= step] if step is not None else []
    place = path.with_name(f".{path.name}.partial")
    place.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept), encoding="utf-8")
    place.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(folder: Path, step: int | None) -> _Scalars:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MachineError(
            "TensorBoard is not installed: `pip install 'tenth[train]'`, or set log.tensorboard = false"
        ) from None
    with _writing(folder):
        writer: _Scalars = SummaryWriter(str(folder), purge_step=0 if step is None else step + 1)
    return writer
