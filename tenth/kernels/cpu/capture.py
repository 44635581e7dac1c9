"""Notes on the operations of a forward pass, so that later passes run them without Python between.

While a `Capture` is open, the native operations note themselves down instead of running. Their tensors are small
stand-ins of `STAND_IN_ROWS` rows; what counts is which memory feeds which operation. `CapturedPlan` then lays all of
it out for as many rows as a step may have: memory whose last reader has run is lent to the next operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tenth.errors import MachineError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tenth.kernels.cpu._native as _native
    from tenth.kernels.cpu.documents import Documents

STAND_IN_ROWS = 2
"""Rows of every tensor of a capture: two, so that strides mean something."""

Kind = Literal["tokens", "logits", "documents"]
KINDS: tuple[Kind, ...] = ("tokens", "logits", "documents")
"""What a row of a tensor stands for; a run says how many there are of each."""

Address = Callable[[Tensor], int]
Emit = Callable[["_native.Plan", Address], None]

_LINE = 64


@dataclass(slots=True)
class _Buffer:
    """A piece of memory: its stand-in, what its rows are, and the first and last operation that need it."""

    tensor: Tensor
    kind: Kind
    first: int
    last: int
    where: int = 0
    behind: list[_Buffer] = field(default_factory=list)  # others of this size that lie side by side behind it

    def nbytes(self, capacity: Mapping[Kind, int]) -> int:
        """Of it and those behind it."""
        return self.pitch(capacity) * (1 + len(self.behind))

    def pitch(self, capacity: Mapping[Kind, int]) -> int:
        """From it to the next one behind it."""
        size = self.tensor.nbytes // STAND_IN_ROWS * capacity[self.kind]
        return -(-size // _LINE) * _LINE


@dataclass(slots=True)
class Capture:
    """The operations of one forward pass and the memory between them."""

    emits: list[Emit] = field(default_factory=list)
    documents: Documents | None = None
    _buffers: dict[int, _Buffer] = field(default_factory=dict)
    _placed_by_another: set[int] = field(default_factory=set)

    def tensor(self, tail: Sequence[int], dtype: torch.dtype, kind: Kind) -> Tensor:
        """Room for the result of the next operation, or for an input where it is filled before the run."""
        stand_in = torch.zeros((STAND_IN_ROWS, *tail), dtype=dtype)
        now = len(self.emits)
        self._buffers[stand_in.untyped_storage().data_ptr()] = _Buffer(stand_in, kind, now, now)
        return stand_in

    def add(self, emit: Emit, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Note an operation."""
        for tensor in (*reads, *writes):
            self._owner(tensor).last = len(self.emits)
        self.emits.append(emit)

    def kind_of(self, tensor: Tensor) -> Kind:
        """What the tensor's rows are."""
        return self._owner(tensor).kind

    def keep(self, tensor: Tensor) -> None:
        """The tensor is filled before the run or read after it: its memory is lent to nobody."""
        buffer = self._owner(tensor)
        buffer.first, buffer.last = 0, len(self.emits)

    def keep_together(self, tensors: Sequence[Tensor]) -> None:
        """The same for several of one shape and type, side by side in memory and equally far apart."""
        for tensor in tensors:
            self.keep(tensor)
        leader, *behind = [self._owner(tensor) for tensor in tensors]
        leader.behind = behind
        self._placed_by_another |= {id(buffer) for buffer in behind}

    def _owner(self, tensor: Tensor) -> _Buffer:
        try:
            return self._buffers[tensor.untyped_storage().data_ptr()]
        except KeyError:
            raise AssertionError("an operation outside the kernels made this tensor: a plan cannot repeat it") from None

    def lay_out(self, capacity: Mapping[Kind, int]) -> tuple[Tensor, Address]:
        """Memory for so many rows of each kind, and where each tensor's first row is in it. MachineError: none left."""
        taken: list[_Buffer] = []
        total = 0
        leaders = [b for b in self._buffers.values() if id(b) not in self._placed_by_another]
        for buffer in sorted(leaders, key=lambda b: -b.nbytes(capacity)):
            size = buffer.nbytes(capacity)
            near = sorted(
                (o.where, o.where + o.nbytes(capacity))
                for o in taken
                if o.first <= buffer.last and buffer.first <= o.last
            )
            buffer.where = 0
            for start, end in near:
                if buffer.where + size <= start:
                    break
                buffer.where = max(buffer.where, end)
            for number, other in enumerate(buffer.behind, 1):
                other.where = buffer.where + number * buffer.pitch(capacity)
            taken.append(buffer)
            total = max(total, buffer.where + size)
        try:
            arena = torch.empty(total + _LINE, dtype=torch.uint8)  # not zeroed: rows that no step uses take no memory
        except RuntimeError:  # what torch raises where memory cannot be had
            rows = ", ".join(f"{capacity[kind]} {kind}" for kind in KINDS)
            raise MachineError(f"a step of {rows} needs {total / 1e9:.1f} GB of memory: show fewer at once") from None
        base = -(-arena.data_ptr() // _LINE) * _LINE

        def address(tensor: Tensor) -> int:
            buffer = self._owner(tensor)
            return base + buffer.where + tensor.data_ptr() - buffer.tensor.data_ptr()

        return arena, address


_open: ContextVar[Capture | None] = ContextVar("_open", default=None)


def current() -> Capture | None:
    """The capture that is open in this thread."""
    return _open.get()


@contextmanager
def capturing() -> Iterator[Capture]:
    """Open a capture: until it is closed, native operations of this thread note themselves down."""
    capture = Capture()
    token = _open.set(capture)
    try:
        yield capture
    finally:
        _open.reset(token)


def run_plan(plan: _native.Plan, tokens: int, logits: int, documents: int) -> None:
    """Run a plan for so many rows of each kind; WeightsError where an expert could not be read."""
    from tenth.kernels.cpu import _native

    try:
        plan.run(tokens, logits, documents)
    except _native.ReadError as error:
        raise WeightsError(str(error)) from None


class CapturedPlan:
    """A capture laid out for up to `capacity` rows of each kind, ready to run."""

    def __init__(self, capture: Capture, machine: _native.Machine, capacity: Mapping[Kind, int]) -> None:
        from tenth.kernels.cpu import _native

        self.capacity = capacity
        self._capture = capture  # it holds the weights whose addresses the plan has
        self._arena, self._address = capture.lay_out(capacity)
        self._plan = _native.Plan(machine)
        for emit in capture.emits:
            emit(self._plan, self._address)

    def view(self, stand_in: Tensor) -> Tensor:
        """The tensor that a stand-in stands for, with as many rows as there is room for."""
        rows = self.capacity[self._capture.kind_of(stand_in)]
        shape = (rows, *stand_in.shape[1:])
        start = self._address(stand_in) - self._arena.data_ptr()
        size = stand_in.nbytes // STAND_IN_ROWS * rows
        return self._arena[start : start + size].view(stand_in.dtype).view(shape)

    def view_together(self, stand_ins: Sequence[Tensor]) -> Tensor:
        """What S stand-ins that were kept together stand for: S, as many rows as there is room for, and so on."""
        one, places = stand_ins[0], [self._address(each) for each in stand_ins]
        rows, start = self.capacity[self._capture.kind_of(one)], places[0] - self._arena.data_ptr()
        size = one.nbytes // STAND_IN_ROWS * rows
        pitch = places[1] - places[0] if len(places) > 1 else size
        together = self._arena[start : start + pitch * len(places)].view(len(places), pitch)
        return together[:, :size].view(one.dtype).view(len(places), rows, *one.shape[1:])

    def run(self, tokens: int, logits: int, documents: int) -> None:
        """Run all operations for so many rows of each kind."""
        run_plan(self._plan, tokens, logits, documents)
