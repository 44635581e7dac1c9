"""A decoder whose steps run as one native call: captured once, then repeated without Python between the operations.

T tokens, C head size, V vocabulary, D model width, K active.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from tenth.kernels.contract import Kernels
from tenth.kernels.cpu.capture import STAND_IN_ROWS, Capture, CapturedPlan, capturing
from tenth.kernels.cpu.documents import Documents
from tenth.kernels.cpu.operations import CpuKernels
from tenth.model.batch import Batch, Output, Placement, Want
from tenth.model.cache import KVCache
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.routing.record import Routing

_LEAST_ROWS = 16

Runner: TypeAlias = "Decoder | CapturedDecoder"
"""What runs batches: the network itself, or its captured steps."""


def runner_of(decoder: Decoder) -> Runner:
    """The decoder as it runs fastest: captured where it is on native kernels."""
    return CapturedDecoder(decoder) if isinstance(decoder.kernels, CpuKernels) else decoder


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a step is told: stand-ins, or the plan's memory."""

    tokens_T: Tensor
    cos_TC: Tensor
    sin_TC: Tensor
    slots_T: Tensor
    bounds_S: Tensor
    lengths_S: Tensor
    pages_SP: Tensor
    logits_N: Tensor

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
    inputs: _Inputs | None = None


class CapturedDecoder:
    """Calls like the decoder's, for a decoder on the native kernels. Several threads may call; they take turns."""

    def __init__(self, decoder: Decoder) -> None:
        assert isinstance(decoder.kernels, CpuKernels)
        self.decoder, self._machine = decoder, decoder.kernels.machine
        self._steps: dict[tuple[object, ...], _Step] = {}
        self._lock = threading.Lock()

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
        self, batch: Batch, cache: KVCache | None = None, want: Want | None = None, routing: Routing | None = None
    ) -> Output:
        """`Decoder.forward`; what cannot be captured (no cache, embeddings, a replay) goes there."""
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
        logits_N = want.logits if isinstance(want.logits, Tensor) else batch.last_T
        step = self._step(cache, want, max(map(len, place.pages)))
        inputs = self._room(step, max(len(batch), len(logits_N), len(batch.bounds)))
        cos_TC, sin_TC = self.decoder.cos_sin(batch)
        for target, source in (
            (inputs.tokens_T, tokens_T),
            (inputs.cos_TC, cos_TC),
            (inputs.sin_TC, sin_TC),
            (inputs.slots_T, place.slots_T),
            (inputs.logits_N, logits_N),
            (inputs.bounds_S, torch.tensor(batch.bounds)),
            (inputs.lengths_S, torch.tensor(place.lengths)),
            *((inputs.pages_SP[s], table) for s, table in enumerate(place.pages)),
        ):
            target[: len(source)] = source
        assert step.plan is not None
        step.plan.run(len(batch), len(logits_N), len(place.lengths))
        wanted = len(batch) if want.logits == "all" else len(logits_N)
        return _result(step.plan, step.output, len(batch), wanted)

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
            )
            capture.documents = Documents(inputs.bounds_S, inputs.lengths_S, inputs.pages_SP)
            batch = Batch(
                bounds=tuple(range(STAND_IN_ROWS + 1)),
                positions_T=torch.zeros(STAND_IN_ROWS, dtype=ids),
                tokens_T=inputs.tokens_T,
                placement=Placement(inputs.slots_T, (inputs.pages_SP[0],) * STAND_IN_ROWS, (1,) * STAND_IN_ROWS),
            )
            some = isinstance(want.logits, Tensor) or want.logits == "last"
            chosen = replace(want, logits=inputs.logits_N) if some else want
            out = self.decoder.compute(batch, (inputs.cos_TC, inputs.sin_TC), cache, chosen)
        for tensor in (*inputs.all(), *_results(out)):
            capture.keep(tensor)
        return _Step(cache, capture, inputs, out)

    def _room(self, step: _Step, rows: int) -> _Inputs:
        """The plan's inputs, with room for so many rows."""
        if step.plan is None or step.inputs is None or step.plan.capacity < rows:
            capacity = max(1 << (rows - 1).bit_length(), _LEAST_ROWS)
            step.plan = CapturedPlan(step.capture, self._machine, capacity)
            step.inputs = _Inputs(*map(step.plan.view, step.stand_ins.all()))
        return step.inputs


def _results(out: Output) -> Iterator[Tensor]:
    """The stand-ins of a pass's results that operations fill."""
    yield from (part for part in (out.logits_NV, out.hidden_TD) if part is not None)
    for layer in out.routing.layers.values() if out.routing else ():
        yield from (part for part in (layer.experts_TK, layer.gates_TK, layer.logits_TE) if part is not None)


def _result(plan: CapturedPlan, stand_ins: Output, tokens: int, logits: int) -> Output:
    """Copies of a run's results: the next run overwrites the plan's memory."""

    def rows(stand_in: Tensor | None, count: int) -> Tensor | None:
        # numpy copies in this thread; torch would wake its own, which then spin beside ours
        return None if stand_in is None else torch.from_numpy(plan.view(stand_in)[:count].numpy().copy())

    routing = None
    if stand_ins.routing is not None:
        layers = {}
        for index, layer in stand_ins.routing.layers.items():
            experts_TK, gates_TK = rows(layer.experts_TK, tokens), rows(layer.gates_TK, tokens)
            assert experts_TK is not None
            assert gates_TK is not None
            dropped_TK = None if layer.dropped_TK is None else torch.zeros_like(experts_TK, dtype=torch.bool)
            layers[index] = replace(
                layer,
                experts_TK=experts_TK,
                gates_TK=gates_TK,
                logits_TE=rows(layer.logits_TE, tokens),
                dropped_TK=dropped_TK,
            )
        routing = Routing(layers)
    return Output(rows(stand_ins.logits_NV, logits), rows(stand_ins.hidden_TD, tokens), routing)
