"""The operations that decide speed: what every set of kernels must compute.

T tokens, D model width, F expert width, E experts, K active, H query heads, G key-value heads, C head size,
P pages, N tokens a page. `reference.py` states each in plain torch and is the oracle.

Native kernels must be batch-invariant: the bits of a row do not depend on the other rows, on its place, on how a prompt
is cut or on the number of threads. The reference is not: torch sums a row in another order beside other neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from tenth.kernels.weight import ExpertTable, Weight
from tenth.routing.limit import TokenLimits
from tenth.routing.rule import RouteRule

KVType = Literal["bf16", "int8"]
"""How keys and values lie in pages: `bf16` as numbers of the kernels' own type (bfloat16 with the native ones, the
model's with the reference), `int8` as signed bytes with a float32 scale for each token and key-value head."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """How a kernel wants a page of keys, and one of values.

    The second number of each shape counts tokens that lie together: a page of N tokens has N / that many such groups
    in its place. `dtype` is the only type the kernels take (None: any float), `unit` what N must be a multiple of.
    Scales of int8 pages lie behind what they are for, four bytes each.
    """

    keys: tuple[int, ...]
    values: tuple[int, ...]
    dtype: torch.dtype | None = None
    unit: int = 1

    def padded(self, length: int) -> int:
        """The smallest page for so many tokens."""
        return -(-length // self.unit) * self.unit

    def nbytes(self, page_size: int, dtype: torch.dtype = torch.bfloat16) -> int:
        """Of one page of one layer, keys and values together."""
        numbers = sum(prod(_pages(1, page_size, part)) for part in (self.keys, self.values))
        return numbers * (self.dtype or dtype).itemsize

    def pools(
        self, pages: int, page_size: int, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Room for the keys and values of so many pages, zeroed. On a CPU it takes memory as it is written to."""
        keys, values = (_pages(pages, page_size, part) for part in (self.keys, self.values))
        kind, place = self.dtype or dtype, torch.device(device)
        if place.type == "cpu":
            return untouched_zeros(keys, kind), untouched_zeros(values, kind)
        return torch.zeros(keys, dtype=kind, device=place), torch.zeros(values, dtype=kind, device=place)


_LINE = 64  # bytes that vector loads want a tensor to begin at a multiple of


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU whose memory is the system's own zero pages until they are written to; torch writes them all."""
    room = np.zeros(prod(shape) * dtype.itemsize + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return torch.from_numpy(room[start : start + prod(shape) * dtype.itemsize]).view(dtype).view(shape)


def _pages(pages: int, page_size: int, part: tuple[int, ...]) -> tuple[int, ...]:
    first, together, *rest = part
    return (pages, first, page_size // together, *rest)


class Kernels(Protocol):
    """One implementation of all operations, for one kind of device. A module of functions is one."""

    name: str

    def embed(self, ids_T: Tensor, weight: Weight, /) -> Tensor:
        """The named rows (T, I) of a matrix."""

    def take(self, x_TD: Tensor, rows_N: Tensor, /) -> Tensor:
        """The named rows (N, D)."""

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None, /) -> Tensor:
        """`x @ weight.T + bias`, any leading shape, in the type of `x`."""

    def linears(self, x_TI: Tensor, weights: Sequence[Weight], biases: Sequence[Tensor | None], /) -> list[Tensor]:
        """The same for several matrices on one `x`."""

    def add(self, x_TD: Tensor, y_TD: Tensor, /) -> Tensor:
        """`x + y`."""

    def add_rms_norm(self, x_TD: Tensor, y_TD: Tensor, weight: Tensor, eps: float, /) -> tuple[Tensor, Tensor]:
        """`x + y`, and its `rms_norm`."""

    def swiglu(self, gate_TF: Tensor, up_TF: Tensor, /) -> Tensor:
        """`silu(gate) * up`."""

    def add_shared(self, y_TD: Tensor, shared_TD: Tensor, gate_T1: Tensor | None, /) -> Tensor:
        """`y + sigmoid(gate) * shared`; without a gate `y + shared`."""

    def heads(
        self,
        q_THC: Tensor,
        k_TGC: Tensor,
        weights: tuple[Tensor | None, Tensor | None],
        eps: float,
        cos_TC: Tensor,
        sin_TC: Tensor,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Each head's `rms_norm` where there is a weight, then rotary positions.

        The pair (i, i + C/2) of a head is turned by the token's angle i (cos, sin: T, C/2).
        """

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, /) -> Tensor:
        """`x / sqrt(mean(x^2) + eps) * weight` over the last axis: in float32 or wider, back to the type of `x`."""

    def attention(self, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, bounds: Sequence[int], /) -> Tensor:
        """Causal attention within each document `bounds[s]:bounds[s + 1]`; returns T, H, C. It has a gradient."""

    def kv_layout(self, heads: int, size: int, kv: KVType = "bf16", /) -> KVLayout:
        """How `store` and `paged_attention` want the pages of G heads of size C; they know int8 ones by their type."""

    def store(self, k_TGC: Tensor, v_TGC: Tensor, keys: Tensor, values: Tensor, slots_T: Tensor, /) -> None:
        """Write each token's key and value to its slot (page * page size + offset) of a layer's pools.

        In int8 pools a number is a whole one, to nearest, times the scale of its token, head and part: the largest
        magnitude / 127. Magnitudes under 2^-100 are 0; one NaN or infinity makes the scale NaN.
        """

    def paged_attention(
        self,
        q_THC: Tensor,
        keys: Tensor,
        values: Tensor,
        pages: Sequence[Tensor],
        lengths: Sequence[int],
        bounds: Sequence[int],
        /,
    ) -> Tensor:
        """Causal attention to a layer's pools of P pages of N tokens; returns T, H, C.

        Document s has the first `lengths[s]` tokens of its pages, in order; its queries `bounds[s]:bounds[s + 1]` are
        the last of them.
        """

    def router_logits(self, x_TD: Tensor, weight_ED: Tensor, /) -> Tensor:
        """Scores of all experts (T, E) in float32 or wider; equal rows of the weight get equal bits."""

    def route(
        self,
        logits_TE: Tensor,
        rule: RouteRule,
        bias_E: Tensor | None = None,
        limits: TokenLimits | None = None,
        /,
    ) -> tuple[Tensor, Tensor]:
        """Ids of the rule's experts (T, K), the largest biased score first, and their gates.

        Of equal experts the lower id comes first, of equal groups too. All K are named; those that a token's limit
        drops have a gate of exactly 0, and gates are the rule's over those that are left.
        """

    def gates(
        self, logits_TE: Tensor, experts_TK: Tensor, rule: RouteRule, dropped_TK: Tensor | None = None, /
    ) -> Tensor:
        """The rule's gates of chosen experts (T, K): no bias changes them.

        Dropped ones are 0, and those of the others are what the rule makes of these alone.
        """

    def expert_ffn(self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable, /) -> Tensor:
        """`sum_k gate_k * down_k(silu(gate_proj_k(x)) * up_k(x))` (T, D), summed in float32 or wider.

        A term whose gate is exactly 0 is left out, whatever the expert would give; native kernels do not read it.
        """

    def measured_experts(
        self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`expert_ffn`, and of each expert's output before its gate the norm and the largest magnitude (T, K, float32).

        Both are 0 where the gate is 0. They have no gradient.
        """
