"""Keys and values of earlier tokens, in pages, laid out as the kernels that read them want it."""

from __future__ import annotations

import torch
from torch import Tensor

from tenth.kernels import reference
from tenth.kernels.contract import Kernels
from tenth.model.config import ModelConfig


class KVCache:
    """A pool of pages for every layer; a batch's `Placement` names the pages and slots that a step may touch."""

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        kernels: Kernels = reference,
    ) -> None:
        """Pages hold `page_size` tokens, or a few more where the kernels' layout asks for whole groups."""
        layout = kernels.kv_layout(config.num_kv_heads, config.head_dim)
        self.page_size = layout.padded(page_size)
        self._layers = [layout.pools(pages, self.page_size, dtype, device) for _ in range(config.num_layers)]

    def pools(self, layer: int) -> tuple[Tensor, Tensor]:
        """All pages of one layer: keys and values, in the kernels' layout."""
        return self._layers[layer]

    def copy_from(self, smaller: KVCache) -> None:
        """Take over the first page of a cache with shorter pages."""
        for mine, theirs in zip(self._layers, smaller._layers, strict=True):
            for pool, part in zip(mine, theirs, strict=True):
                pool[0, :, : part.shape[2]] = part[0]
