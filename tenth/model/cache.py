"""Keys and values of earlier tokens, in pages, laid out as the kernels that read them want it."""

from __future__ import annotations

import torch
from torch import Tensor

from tenth.errors import RequestError
from tenth.kernels import reference
from tenth.kernels.contract import Kernels
from tenth.model.batch import Placement, edges
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
        self.pages, self.page_size = pages, layout.padded(page_size)
        self._layers = [layout.pools(pages, self.page_size, dtype, device) for _ in range(config.num_layers)]

    def pools(self, layer: int) -> tuple[Tensor, Tensor]:
        """All pages of one layer: keys and values, in the kernels' layout."""
        return self._layers[layer]

    def check(self, place: Placement) -> None:
        """RequestError where a placement names slots or pages that are not here, or too few of them."""
        slots = self.pages * self.page_size
        if not _within(place.slots_T, slots):
            raise RequestError(f"a placement names slots outside the cache's, 0 to {slots - 1}")
        if not all(_within(table, self.pages) for table in place.pages):
            raise RequestError(f"a placement names pages outside the cache's, 0 to {self.pages - 1}")
        for length, table in zip(place.lengths, place.pages, strict=True):
            if not 0 < length <= len(table) * self.page_size:
                raise RequestError(f"a document of {length} tokens is placed in {len(table)} pages of {self.page_size}")

    def copy_page(self, source: int, target: int) -> None:
        """Give a page what another one holds, in all layers."""
        for pools in self._layers:
            for pool in pools:
                pool[target] = pool[source]

    def copy_from(self, smaller: KVCache) -> None:
        """Take over the first page of a cache with shorter pages."""
        for mine, theirs in zip(self._layers, smaller._layers, strict=True):
            for pool, part in zip(mine, theirs, strict=True):
                pool[0, :, : part.shape[2]] = part[0]


def _within(ids: Tensor, end: int) -> bool:
    low, high = edges(ids) if len(ids) else (0, 0)
    return low >= 0 and high < end
