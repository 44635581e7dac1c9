"""Keys and values of earlier tokens, in pages.

P pages, N tokens a page, G key-value heads, C head size, T tokens of the step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tenth.model.batch import Placement
from tenth.model.config import ModelConfig


class KVCache:
    """A pool of pages for every layer; a batch's `Placement` names the pages and slots that a step may touch."""

    def __init__(
        self, config: ModelConfig, pages: int, page_size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        shape = (config.num_layers, pages, page_size, config.num_kv_heads, config.head_dim)
        self.page_size = page_size
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty(shape, dtype=dtype, device=device)

    def write(self, layer: int, placement: Placement, k_TGC: Tensor, v_TGC: Tensor) -> None:
        """Store the step's keys and values in their slots."""
        self._keys[layer].flatten(0, 1)[placement.slots_T] = k_TGC.to(self._keys.dtype)
        self._values[layer].flatten(0, 1)[placement.slots_T] = v_TGC.to(self._values.dtype)

    def pools(self, layer: int) -> tuple[Tensor, Tensor]:
        """All pages of one layer: keys and values (P, N, G, C)."""
        return self._keys[layer], self._values[layer]

    def copy_from(self, smaller: KVCache) -> None:
        """Take over the first page of a cache with shorter pages."""
        self._keys[:, 0, : smaller.page_size] = smaller._keys[:, 0]
        self._values[:, 0, : smaller.page_size] = smaller._values[:, 0]
