"""The contract of the kernels on packed weights and float32 activations, by native code.

Each operation either runs at once or, while a capture is open, notes itself down (`capture.py`).

T tokens, D model width, E experts, K active, H query heads, G key-value heads, C head size, P pages, N tokens a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

import tenth.kernels.cpu._native as _native
from tenth.kernels import reference
from tenth.kernels.contract import KVLayout, KVType
from tenth.kernels.cpu.capture import KINDS, Address, Emit, Kind, current, run_plan
from tenth.kernels.cpu.documents import Documents, slots_of
from tenth.kernels.cpu.expert_cache import CachedExpertTable
from tenth.kernels.cpu.native_weights import native_experts, native_matrix, packed_floats
from tenth.kernels.packed import PackedExpertTable
from tenth.kernels.weight import ExpertTable, Weight
from tenth.routing.limit import TokenLimits
from tenth.routing.rule import RouteRule

_NONE = (0, 0)  # no rows
_BLOCK, _SCALE = 64, 4  # tokens of a block of int8 pages; bytes of each one's scale


class CpuKernels:
    """All operations on one team of threads, with one instruction set."""

    name = "cpu"

    def __init__(self, machine: _native.Machine) -> None:
        self.machine = machine
        self._matrices: WeakKeyDictionary[Weight, _native.Matrix] = WeakKeyDictionary()
        self._tables: WeakKeyDictionary[ExpertTable, _native.Experts] = WeakKeyDictionary()
        self._routers = WeakTensorKeyDictionary()  # a router's rows, packed

    def embed(self, ids_T: Tensor, weight: Weight) -> Tensor:
        """The named rows of a matrix."""
        matrix = self._matrix(weight)
        y_TI = self._new(ids_T, weight.in_features)
        kind = _kind(y_TI)
        self._do(
            lambda plan, at: plan.gather(kind, at(ids_T), matrix, 0, 0, weight.in_features, *_row(y_TI, at)),
            (ids_T,),
            (y_TI,),
        )
        return y_TI

    def take(self, x_TD: Tensor, rows_N: Tensor) -> Tensor:
        """The named rows of a tensor."""
        y_ND = self._new(rows_N, x_TD.shape[1])
        kind = _kind(y_ND)
        self._do(
            lambda plan, at: plan.gather(kind, at(rows_N), None, *_row(x_TD, at), x_TD.shape[1], *_row(y_ND, at)),
            (x_TD, rows_N),
            (y_ND,),
        )
        return y_ND

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """`x @ weight.T + bias`."""
        flat_TI = x.reshape(-1, x.shape[-1])
        return self.linears(flat_TI, (weight,), (bias,))[0].view(*x.shape[:-1], weight.out_features)

    def linears(self, x_TI: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None]) -> list[Tensor]:
        """Several matrices on the same rows."""
        matrices = [self._matrix(weight) for weight in weights]
        ys = [self._new(x_TI, weight.out_features) for weight in weights]
        parts = list(zip(matrices, [_float32(bias) for bias in biases], ys, strict=True))

        kind = _kind(x_TI)

        def emit(plan: _native.Plan, at: Address) -> None:
            outs = [(matrix, 0 if bias is None else bias.data_ptr(), *_row(y, at)) for matrix, bias, y in parts]
            plan.linear(kind, *_row(x_TI, at), outs)

        self._do(emit, (x_TI,), ys)
        return ys

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x / sqrt(mean(x^2) + eps) * weight` over the last axis."""
        flat_TD = x.reshape(-1, x.shape[-1])
        y_TD = self._new(flat_TD, flat_TD.shape[1])
        kind = _kind(flat_TD)
        self._do(
            lambda plan, at: plan.rms_norm(
                kind,
                flat_TD.shape[1],
                *_row(flat_TD, at),
                *_NONE,
                *_NONE,
                weight.data_ptr(),
                eps,
                *_row(y_TD, at),
            ),
            (flat_TD,),
            (y_TD,),
        )
        return y_TD.view(x.shape)

    def add_rms_norm(self, x_TD: Tensor, y_TD: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`x + y`, and its norm."""
        sum_TD, norm_TD = self._new(x_TD, x_TD.shape[1]), self._new(x_TD, x_TD.shape[1])

        kind = _kind(x_TD)

        def emit(plan: _native.Plan, at: Address) -> None:
            rows = (_row(x_TD, at), _row(y_TD, at), _row(sum_TD, at))
            plan.rms_norm(kind, x_TD.shape[1], *rows[0], *rows[1], *rows[2], weight.data_ptr(), eps, *_row(norm_TD, at))

        self._do(emit, (x_TD, y_TD), (sum_TD, norm_TD))
        return sum_TD, norm_TD

    def add(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        """`x + y`."""
        sum_TD = self._new(x_TD, x_TD.shape[1])
        kind = _kind(x_TD)
        self._do(
            lambda plan, at: plan.add(kind, x_TD.shape[1], *_row(x_TD, at), *_row(y_TD, at), *_row(sum_TD, at)),
            (x_TD, y_TD),
            (sum_TD,),
        )
        return sum_TD

    def swiglu(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        """`silu(gate) * up`."""
        y_TF = self._new(gate_TF, gate_TF.shape[1])
        kind = _kind(gate_TF)
        self._do(
            lambda plan, at: plan.silu_mul(
                kind, gate_TF.shape[1], *_row(gate_TF, at), *_row(up_TF, at), *_row(y_TF, at)
            ),
            (gate_TF, up_TF),
            (y_TF,),
        )
        return y_TF

    def add_shared(self, y_TD: Tensor, shared_TD: Tensor, gate_T1: Tensor | None) -> Tensor:
        """`y + sigmoid(gate) * shared`, in the memory of `y` where there is a gate."""
        if gate_T1 is None:
            return self.add(y_TD, shared_TD)
        self._do(
            lambda plan, at: plan.add_scaled(y_TD.shape[1], *_row(gate_T1, at), *_row(shared_TD, at), *_row(y_TD, at)),
            (gate_T1, shared_TD, y_TD),
            (y_TD,),
        )
        return y_TD

    def heads(
        self,
        q_THC: Tensor,
        k_TGC: Tensor,
        weights: tuple[Tensor | None, Tensor | None],
        eps: float,
        cos_TC: Tensor,
        sin_TC: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Each head of queries and keys normalised where there is a weight, and turned to its position."""
        size = q_THC.shape[2]
        parts = [(x, weight, self._new(x, *x.shape[1:])) for x, weight in zip((q_THC, k_TGC), weights, strict=True)]

        def emit(plan: _native.Plan, at: Address) -> None:
            q, k = (
                (x.shape[1], *_row(x, at), 0 if weight is None else weight.data_ptr(), *_row(y, at))
                for x, weight, y in parts
            )
            plan.heads(size, q, k, eps, at(cos_TC), at(sin_TC))

        outs = (parts[0][2], parts[1][2])
        self._do(emit, (q_THC, k_TGC, cos_TC, sin_TC), outs)
        return outs

    def kv_layout(self, heads: int, size: int, kv: KVType = "bf16") -> KVLayout:
        """bfloat16: keys as chunks of 16 tokens by 2 channels, values as chunks of 16 channels by 2 tokens.

        Bytes: by 4 channels and by 4 tokens, and behind those of 64 tokens their scales.
        """
        assert size % 16 == 0, "checked when the kernels are chosen"
        # 32, 64: what a tile of AMX takes; the same everywhere, so that a page's size never changes the arithmetic
        if kv == "int8":
            block = (heads, _BLOCK, _BLOCK * (size + _SCALE))
            return KVLayout(block, block, torch.int8, unit=_BLOCK)
        return KVLayout((heads, 16, size // 2, 16, 2), (heads, 2, size, 2), torch.bfloat16, unit=32)

    def store(self, k_TGC: Tensor, v_TGC: Tensor, keys: Tensor, values: Tensor, slots_T: Tensor) -> None:
        """Write the step's keys and values to their slots."""
        view = _kv_view(keys, values)
        self._do(
            lambda plan, at: plan.store_kv(*_row(k_TGC, at), *_row(v_TGC, at), at(slots_T), view),
            (k_TGC, v_TGC, slots_T),
            (),
        )

    def paged_attention(
        self,
        q_THC: Tensor,
        keys: Tensor,
        values: Tensor,
        pages: Sequence[Tensor],
        lengths: Sequence[int],
        bounds: Sequence[int],
    ) -> Tensor:
        """Causal attention to the pages of each document."""
        capture = current()
        documents = Documents.of(pages, lengths, bounds) if capture is None else capture.documents
        assert documents is not None, "a capture with a cache has its tables"
        _, heads, size = q_THC.shape
        y_THC = self._new(q_THC, heads, size)
        view = _kv_view(keys, values)

        def emit(plan: _native.Plan, at: Address) -> None:
            tables = (at(documents.bounds), at(documents.lengths), *_row(documents.pages, at))
            plan.attention(heads, *_row(q_THC, at), view, *tables, size**-0.5, *_row(y_THC, at))

        self._do(emit, (q_THC, *documents.tensors), (y_THC,), documents=documents.count)
        return y_THC

    def attention(self, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, bounds: Sequence[int]) -> Tensor:
        """Causal attention within each document, through a cache that lives as long as the call."""
        lengths = [end - start for start, end in pairwise(bounds)]
        layout = self.kv_layout(k_TGC.shape[1], k_TGC.shape[2])
        page_size = layout.padded(max(lengths))
        keys, values = layout.pools(len(lengths), page_size)
        self.store(k_TGC, v_TGC, keys, values, slots_of(bounds, page_size))
        pages = list(torch.arange(len(lengths))[:, None])
        return self.paged_attention(q_THC, keys, values, pages, lengths, bounds)

    def router_logits(self, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        """Scores of all experts: each a sum in order of columns, so that equal rows tie."""
        if weight_ED not in self._routers:
            self._routers[weight_ED] = packed_floats(weight_ED.detach())
        return self.linears(x_TD, (self._routers[weight_ED],), (None,))[0]

    def route(
        self, logits_TE: Tensor, rule: RouteRule, bias_E: Tensor | None = None, limits: TokenLimits | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ids of the rule's experts, the largest biased score first, of equal ones the lower id; and their gates."""
        experts_TK = self._new(logits_TE, rule.top_k, dtype=torch.int64)
        gates_TK = self._new(logits_TE, rule.top_k)
        bias = _float32(bias_E)  # the operation holds it: a captured plan has its address

        def emit(plan: _native.Plan, at: Address) -> None:
            parts = (rule.top_k, rule.renormalise, rule.score == "sigmoid", rule.groups, rule.top_groups, rule.scale)
            address = 0 if bias is None else bias.data_ptr()
            within = (0, 0) if limits is None else (at(limits.mass_T), at(limits.cap_T))
            outs = (at(experts_TK), at(gates_TK))
            plan.route(logits_TE.shape[1], *parts, address, *_row(logits_TE, at), *within, rule.rescales, *outs)

        reads = (logits_TE,) if limits is None else (logits_TE, limits.mass_T, limits.cap_T)
        self._do(emit, reads, (experts_TK, gates_TK))
        return experts_TK, gates_TK

    def gates(self, logits_TE: Tensor, experts_TK: Tensor, rule: RouteRule, dropped_TK: Tensor | None = None) -> Tensor:
        """The rule's gates of experts that were chosen elsewhere: a replay, which is never captured."""
        return reference.gates(logits_TE, experts_TK, rule, dropped_TK)

    def expert_ffn(self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable) -> Tensor:
        """The weighted sum of the chosen experts, in order of k, those with a gate of 0 left out."""
        return self._experts(x_TD, experts_TK, gates_TK, table, ())

    def measured_experts(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same bits, and the sizes of outputs, summed in one order whatever the instruction set."""
        norms_TK, peaks_TK = (self._new(x_TD, experts_TK.shape[1]) for _ in range(2))
        return self._experts(x_TD, experts_TK, gates_TK, table, (norms_TK, peaks_TK)), norms_TK, peaks_TK

    def _experts(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable, sizes: Sequence[Tensor]
    ) -> Tensor:
        ids_TK, gates_TK = experts_TK.contiguous(), gates_TK.contiguous()
        y_TD = self._new(x_TD, x_TD.shape[1])
        if isinstance(table, CachedExpertTable):
            self._cached_experts(x_TD, ids_TK, gates_TK, table, y_TD, sizes)
            return y_TD
        native, top_k = self._table(table), experts_TK.shape[1]

        def emit(plan: _native.Plan, at: Address) -> None:
            to = (*_row(y_TD, at), *(map(at, sizes) if sizes else (0, 0)))
            plan.expert_ffn(*_row(x_TD, at), at(ids_TK), at(gates_TK), top_k, native, *to)

        self._do(emit, (x_TD, ids_TK, gates_TK), (y_TD, *sizes))
        return y_TD

    def _cached_experts(
        self,
        x_TD: Tensor,
        ids_TK: Tensor,
        gates_TK: Tensor,
        table: CachedExpertTable,
        y_TD: Tensor,
        sizes: Sequence[Tensor],
    ) -> None:
        """The same with experts that may have to be read; those of the next layer are read ahead by its forecast."""
        next_TK = None
        if table.forecast is not None:
            scores_TE = self.linears(x_TD, (table.forecast.weight,), (None,))[0]
            next_TK, _ = self.route(scores_TE, table.forecast.rule, table.forecast.bias_E)
        top_k, store, layer = ids_TK.shape[1], table.cache.store, table.layer

        def emit(plan: _native.Plan, at: Address) -> None:
            ahead = (0, 0) if next_TK is None else (at(next_TK), next_TK.shape[1])
            to = (*_row(y_TD, at), *(map(at, sizes) if sizes else (0, 0)))
            plan.stored_experts(*_row(x_TD, at), at(ids_TK), at(gates_TK), top_k, store, layer, *ahead, *to)

        self._do(emit, (x_TD, ids_TK, gates_TK, *(() if next_TK is None else (next_TK,))), (y_TD, *sizes))

    def _do(self, emit: Emit, reads: Sequence[Tensor], writes: Sequence[Tensor], documents: int = 0) -> None:
        capture = current()
        if capture is not None:
            capture.add(emit, reads, writes)
            return
        plan = _native.Plan(self.machine)
        emit(plan, Tensor.data_ptr)
        rows = len((*writes, *reads)[0])
        run_plan(plan, rows, rows, documents)

    def _new(self, like: Tensor, *tail: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Room for a result with the rows of another tensor."""
        capture = current()
        if capture is None:
            return torch.empty((len(like), *tail), dtype=dtype)
        return capture.tensor(tail, dtype, capture.kind_of(like))

    def _matrix(self, weight: Weight) -> _native.Matrix:
        if weight not in self._matrices:
            self._matrices[weight] = native_matrix(weight)
        return self._matrices[weight]

    def _table(self, table: ExpertTable) -> _native.Experts:
        if table not in self._tables:
            assert isinstance(table, PackedExpertTable), "native kernels take packed experts"
            self._tables[table] = native_experts(table.experts)
        return self._tables[table]


def _row(tensor: Tensor, at: Address) -> tuple[int, int]:
    """The address of a tensor's first row, and the elements from a row to the next."""
    assert tensor[0].is_contiguous(), "the numbers of a row lie side by side"
    return at(tensor), tensor.stride(0)


def _kind(tensor: Tensor) -> int:
    """What the tensor's rows are. To be asked when an operation is called: plans are written after the capture."""
    capture = current()
    kind: Kind = "tokens" if capture is None else capture.kind_of(tensor)
    return KINDS.index(kind)


def _kv_view(keys: Tensor, values: Tensor) -> _native.KvView:
    """Addresses, whether they are bytes, page size, heads, head size and page stride (bytes) of one layer's pools."""
    heads, groups = keys.shape[1:3]
    int8 = keys.dtype == torch.int8
    page_size = groups * (_BLOCK if int8 else keys.shape[4])
    size = keys.shape[3] // _BLOCK - _SCALE if int8 else values.shape[3]
    stride = keys.stride(0) * keys.element_size()
    return keys.data_ptr(), values.data_ptr(), int8, page_size, heads, size, stride


def _float32(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().float()
