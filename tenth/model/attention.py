"""Grouped-query attention with rotary positions and, where the config says so, a norm on each head.

T tokens, D model width, H query heads, G key-value heads, C head size.
"""

from __future__ import annotations

from torch import Tensor, nn

from tenth.kernels.backend import Backend
from tenth.model.batch import Batch
from tenth.model.cache import KVCache
from tenth.model.config import ModelConfig
from tenth.model.linear import Linear, RMSNorm


class Attention(nn.Module):
    """One layer's attention. With a cache, keys and values of earlier tokens come from the pages the batch names."""

    def __init__(self, config: ModelConfig, layer: int, on: Backend) -> None:
        super().__init__()
        width, size = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_heads * size, config.num_kv_heads * size
        self.q = Linear(width, q_size, config.qkv_bias, on.at("q"))
        self.k = Linear(width, kv_size, config.qkv_bias, on.at("k"))
        self.v = Linear(width, kv_size, config.qkv_bias, on.at("v"))
        self.o = Linear(q_size, width, config.o_bias, on.at("o"))
        self.q_norm = RMSNorm(size, config.rms_norm_eps, on.at("q_norm")) if config.qk_norm else None
        self.k_norm = RMSNorm(size, config.rms_norm_eps, on.at("k_norm")) if config.qk_norm else None
        self._layer, self._head_dim, self._eps, self._kernels = layer, size, config.rms_norm_eps, on.kernels

    def forward(self, x_TD: Tensor, batch: Batch, cos_sin: tuple[Tensor, Tensor], cache: KVCache | None) -> Tensor:
        """T, D to T, D; writes the step's keys and values to the cache where there is one."""
        parts = (self.q, self.k, self.v)
        flat = self._kernels.linears(x_TD, [part.weight for part in parts], [part.bias for part in parts])
        q_THC, k_TGC, v_TGC = (part.view(len(part), -1, self._head_dim) for part in flat)
        norms = (_weight(self.q_norm), _weight(self.k_norm))
        q_THC, k_TGC = self._kernels.heads(q_THC, k_TGC, norms, self._eps, *cos_sin)
        if cache is None:
            y_THC = self._kernels.attention(q_THC, k_TGC, v_TGC, batch.bounds)
        else:
            place = batch.placement
            assert place is not None, "Decoder.forward checks this"
            pools = cache.pools(self._layer)
            self._kernels.store(k_TGC, v_TGC, *pools, place.slots_T)
            y_THC = self._kernels.paged_attention(q_THC, *pools, place.pages, place.lengths, batch.bounds)
        y_TD: Tensor = self.o(y_THC.flatten(1))
        return y_TD


def _weight(norm: RMSNorm | None) -> Tensor | None:
    return None if norm is None else norm.weight
