"""A decoder whose steps run as one native call: captured once, then repeated without Python between the operations.

T tokens, C head size, V vocabulary, D model width, K active.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tenth.kernels.contract import Kernels
from tenth.kernels.cpu.capture import STAND_IN_ROWS, Capture, CapturedPlan, Kind, capturing
from tenth.kernels.cpu.documents import Documents
from tenth.kernels.cpu.operations import CpuKernels
from tenth.model.batch import Batch, Output, Placement, Want
from tenth.model.cache import KVCache
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.routing.limit import NO_CAP, TokenLimits
from tenth.routing.record import Routing
from tenth.routing.rule import RoutingPolicy
from tenth.routing.stacked import StackedLayers

_LEAST_ROWS = 16
_LARGE = 64 << 10  # bytes of a copy whose memory is worth keeping
_SPARE = 2  # of those, for the next steps


class Runner(Protocol):
    """What runs batches: the network itself, its captured steps, a model that follows a script."""

    @property
    def config(self) -> ModelConfig:
        """The shape of the network."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    @property
    def kernels(self) -> Kernels:
        """Who lays out keys and values."""

    def __call__(self, batch: Batch, cache: KVCache | None = None, want: Want | None = None, /) -> Output:
        """As `Decoder.forward`."""


def runner_of(decoder: Runner) -> Runner:
    """A decoder as it runs fastest: captured where it is on native kernels."""
    native = isinstance(decoder, Decoder) and isinstance(decoder.kernels, CpuKernels)
    return CapturedDecoder(decoder) if native else decoder  # type: ignore[arg-type]  # seen to be one


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a step is told, as stand-ins; `_Step.inputs` is the plan's memory for them, in this order."""

    tokens_T: Tensor
    cos_TC: Tensor
    sin_TC: Tensor
    slots_T: Tensor
    bounds_S: Tensor
    lengths_S: Tensor
    pages_SP: Tensor
    logits_N: Tensor
    mass_T: Tensor
    cap_T: Tensor

    def all(self) -> Iterator[Tensor]:
        return (getattr(self, name) for name in self.__slots__)


@dataclass(slots=True)
class _Step:
    """A captured forward pass with one cache and one kind of result."""

    cache: KVCache
    capture: Capture
    stand_ins: _Inputs
    output: Output
    plan: CapturedPlan | None = None
    inputs: list[npt.NDArray[Any]] = field(default_factory=list)  # the plan's memory for stand_ins.all()
    results: dict[int, npt.NDArray[Any]] = field(default_factory=dict)  # and for what each stand-in (its id) stands for
    routing: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # of all layers, by the names of `StackedLayers`


class _Copies:
    """Copies of results; large ones in memory that is used again when nobody looks at the copy any more.

    Fresh memory for logits would be a page fault every 4 KB, in every step.
    """

    def __init__(self) -> None:
        self._lent: list[tuple[npt.NDArray[np.uint8], weakref.ref[npt.NDArray[Any]]]] = []

    def __call__(self, source: npt.NDArray[Any]) -> Tensor:
        # numpy copies in this thread; torch would wake its own, which then spin beside ours
        if source.nbytes < _LARGE:
            return torch.from_numpy(source.copy())
        memory = next(
            (memory for memory, copy in self._lent if copy() is None and memory.nbytes >= source.nbytes), None
        )
        if memory is None:
            memory = np.empty(source.nbytes, np.uint8)
        copy = memory[: source.nbytes].view(source.dtype).reshape(source.shape)
        copy[...] = source
        others = [lent for lent in self._lent if lent[0] is not memory]
        self._lent = [*others[1 - _SPARE :], (memory, weakref.ref(copy))]
        return torch.from_numpy(copy)  # holds `copy` as long as any tensor looks at its memory


class CapturedDecoder:
    """Calls like the decoder's, for a decoder on the native kernels. Several threads may call; they take turns."""

    def __init__(self, decoder: Decoder) -> None:
        assert isinstance(decoder.kernels, CpuKernels)
        self.decoder, self._machine = decoder, decoder.kernels.machine
        self._steps: dict[tuple[object, ...], _Step] = {}
        self._lock = threading.Lock()
        self._copied = _Copies()

    @property
    def config(self) -> ModelConfig:
        """The shape of the network."""
        return self.decoder.config

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self.decoder.dtype

    @property
    def device(self) -> torch.device:
        """Where activations are."""
        return self.decoder.device

    @property
    def kernels(self) -> Kernels:
        """The decoder's."""
        return self.decoder.kernels

    @torch.inference_mode()
    def __call__(
        self,
        batch: Batch,
        cache: KVCache | None = None,
        want: Want | None = None,
        routing: Routing | RoutingPolicy | None = None,
    ) -> Output:
        """`Decoder.forward`; what cannot be captured (no cache, embeddings, a replay, a policy) goes there."""
        want = want or Want()
        if cache is None or batch.tokens_T is None or routing is not None:
            return self.decoder.forward(batch, cache, want, routing)
        self.decoder.check(batch, cache, want=want)
        with self._lock:
            return self._run(batch, cache, want)

    def _run(self, batch: Batch, cache: KVCache, want: Want) -> Output:
        place, tokens_T = batch.placement, batch.tokens_T
        assert place is not None
        assert tokens_T is not None
        logits_N = want.logits if isinstance(want.logits, Tensor) else [end - 1 for end in batch.bounds[1:]]
        step = self._step(cache, want, max(map(len, place.pages)))
        plan = self._room(step, {"tokens": len(batch), "logits": len(logits_N), "documents": len(batch.bounds)})
        cos_TC, sin_TC = self.decoder.cos_sin(batch)
        sources = (tokens_T, cos_TC, sin_TC, place.slots_T, batch.bounds, place.lengths, place.pages, logits_N)
        *inputs, mass_T, cap_T = step.inputs
        for target, source in zip(inputs, sources, strict=True):
            if source is place.pages:
                for row, table in zip(target, place.pages, strict=False):
                    row[: len(table)] = table.numpy()
            else:
                target[: len(source)] = source.numpy() if isinstance(source, Tensor) else source
        limits = batch.limits
        mass_T[: len(batch)] = 1.0 if limits is None else limits.mass_T.numpy()
        cap_T[: len(batch)] = NO_CAP if limits is None else limits.cap_T.numpy()
        plan.run(len(batch), len(logits_N), len(place.lengths))
        wanted = len(batch) if want.logits == "all" else len(logits_N)
        return self._result(step, len(batch), wanted, limited=limits is not None)

    def _step(self, cache: KVCache, want: Want, pages: int) -> _Step:
        """The captured pass for this cache and this kind of result."""
        logits = "some" if isinstance(want.logits, Tensor) or want.logits == "last" else want.logits
        pages = 1 << (pages - 1).bit_length()
        key = (logits, want.hidden, want.routing, pages)
        step = self._steps.get(key)
        if step is None or step.cache is not cache:
            self._steps = {k: s for k, s in self._steps.items() if s.cache is cache}
            step = self._steps[key] = self._captured(cache, want, pages)
        return step

    def _captured(self, cache: KVCache, want: Want, pages: int) -> _Step:
        with capturing() as capture:
            half, ids = (self.config.head_dim // 2,), torch.int64
            inputs = _Inputs(
                capture.tensor((), ids, "tokens"),
                capture.tensor(half, torch.float32, "tokens"),
                capture.tensor(half, torch.float32, "tokens"),
                capture.tensor((), ids, "tokens"),
                capture.tensor((), ids, "documents"),
                capture.tensor((), ids, "documents"),
                capture.tensor((pages,), ids, "documents"),
                capture.tensor((), ids, "logits"),
                capture.tensor((), torch.float32, "tokens"),
                capture.tensor((), ids, "tokens"),
            )
            capture.documents = Documents(inputs.bounds_S, inputs.lengths_S, inputs.pages_SP)
            batch = Batch(
                bounds=tuple(range(STAND_IN_ROWS + 1)),
                positions_T=torch.zeros(STAND_IN_ROWS, dtype=ids),
                tokens_T=inputs.tokens_T,
                placement=Placement(inputs.slots_T, (inputs.pages_SP[0],) * STAND_IN_ROWS, (1,) * STAND_IN_ROWS),
                limits=TokenLimits(inputs.mass_T, inputs.cap_T),  # every step has them: one plan for all batches
            )
            some = isinstance(want.logits, Tensor) or want.logits == "last"
            chosen = replace(want, logits=inputs.logits_N) if some else want
            out = self.decoder.compute(batch, (inputs.cos_TC, inputs.sin_TC), cache, chosen)
        for tensor in (*inputs.all(), *_states(out)):
            capture.keep(tensor)
        for _, parts in _decided(out):
            capture.keep_together(parts)
        return _Step(cache, capture, inputs, out)

    def _room(self, step: _Step, rows: Mapping[Kind, int]) -> CapturedPlan:
        """The plan, with room for so many rows of each kind."""
        had = step.plan.capacity if step.plan is not None else dict.fromkeys(rows, _LEAST_ROWS)
        if step.plan is None or any(had[kind] < count for kind, count in rows.items()):
            capacity = {kind: max(1 << (count - 1).bit_length(), had[kind]) for kind, count in rows.items()}
            step.plan, step.inputs, step.results, step.routing = None, [], {}, {}  # before the larger one comes
            step.plan = CapturedPlan(step.capture, self._machine, capacity)
            step.inputs = [step.plan.view(stand_in).numpy() for stand_in in step.stand_ins.all()]
            step.results = {id(stand_in): step.plan.view(stand_in).numpy() for stand_in in _states(step.output)}
            step.routing = {name: step.plan.view_together(parts).numpy() for name, parts in _decided(step.output)}
        return step.plan

    def _result(self, step: _Step, tokens: int, logits: int, *, limited: bool) -> Output:
        """Copies of a run's results: the next run overwrites the plan's memory."""
        stand_ins = step.output

        def rows(stand_in: Tensor | None, count: int) -> Tensor | None:
            return None if stand_in is None else self._copied(step.results[id(stand_in)][:count])

        routing = stand_ins.routing
        if routing is not None and routing.layers:
            routing = self._routing(step, routing, tokens, limited=limited)
        return Output(rows(stand_ins.logits_NV, logits), rows(stand_ins.hidden_TD, tokens), routing)

    def _routing(self, step: _Step, routing: Routing, tokens: int, *, limited: bool) -> Routing:
        # numpy copies in this thread
        parts = {name: torch.from_numpy(rows[:, :tokens].copy()) for name, rows in step.routing.items()}
        first = next(iter(routing.layers.values()))
        return Routing(
            StackedLayers(tuple(routing.layers), first.num_experts, **parts, score=first.score, limited=limited)
        )


def _states(out: Output) -> Iterator[Tensor]:
    """The stand-ins of logits and hidden states."""
    yield from (part for part in (out.logits_NV, out.hidden_TD) if part is not None)


def _decided(out: Output) -> Iterator[tuple[str, list[Tensor]]]:
    """The stand-ins of what all routers decided, by the names of `StackedLayers`."""
    layers = list(out.routing.layers.values()) if out.routing is not None else []
    for name in ("experts_TK", "gates_TK", "logits_TE", "norms_TK", "peaks_TK"):
        parts = [part for layer in layers if (part := getattr(layer, name)) is not None]
        if parts:
            yield name.replace("_", "_L"), parts
