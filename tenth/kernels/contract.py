"""The operations that decide speed: what every set of kernels must compute.

T tokens, D model width, F expert width, E experts, K active, H query heads, G key-value heads, C head size,
P pages, N tokens a page. `reference.py` states each in plain torch and is the oracle.

Native kernels must be batch-invariant: the bits of a row do not depend on the other rows, on its place, on how a prompt
is cut or on the number of threads. The reference is not: torch sums a row in another order beside other neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tenth.kernels.weight import ExpertTable, Weight


class Kernels(Protocol):
    """One implementation of all operations, for one kind of device. A module of functions is one."""

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None, /) -> Tensor:
        """`x @ weight.T + bias`, any leading shape, in the type of `x`."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, /) -> Tensor:
        """`x / sqrt(mean(x^2) + eps) * weight` over the last axis: in float32 or wider, back to the type of `x`."""

    def rotate(self, x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor, /) -> Tensor:
        """Rotary positions: the pair (i, i + C/2) of each head turned by the token's angle i (cos, sin: T, C/2)."""

    def attention(self, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, bounds: Sequence[int], /) -> Tensor:
        """Causal attention within each document `bounds[s]:bounds[s + 1]`; returns T, H, C. It has a gradient."""

    def paged_attention(
        self,
        q_THC: Tensor,
        keys_PNGC: Tensor,
        values_PNGC: Tensor,
        pages: Sequence[Tensor],
        lengths: Sequence[int],
        bounds: Sequence[int],
        /,
    ) -> Tensor:
        """Causal attention to a pool of P pages of N tokens; returns T, H, C.

        Document s has the first `lengths[s]` tokens of its pages, in order; its queries `bounds[s]:bounds[s + 1]` are
        the last of them.
        """

    def router_logits(self, x_TD: Tensor, weight_ED: Tensor, /) -> Tensor:
        """Scores of all experts (T, E) in float32 or wider; equal rows of the weight get equal bits."""

    def choose(self, logits_TE: Tensor, top_k: int, /) -> Tensor:
        """Ids of the `top_k` largest logits (T, K), best first; of equal ones the lower id first."""

    def gates(self, logits_TE: Tensor, experts_TK: Tensor, renormalise: bool, /) -> Tensor:
        """Softmax of the logits at the chosen experts (T, K); renormalised to sum to one where asked."""

    def expert_ffn(self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: ExpertTable, /) -> Tensor:
        """`sum_k gate_k * down_k(silu(gate_proj_k(x)) * up_k(x))` (T, D), summed in float32 or wider."""
