"""Keys and values of earlier tokens, in pages, laid out as the kernels that read them want it."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from tenth.errors import RequestError
from tenth.kernels import reference
from tenth.kernels.contract import Kernels, KVLayout, KVType
from tenth.model.batch import Placement, edges
from tenth.model.config import ModelConfig

KV_TYPES: tuple[str, ...] = get_args(KVType)


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
        kv: KVType = "bf16",
    ) -> None:
        """Pages hold `page_size` tokens, or a few more where the kernels' layout asks for whole groups.

        `kv` is `bf16` (or `dtype`, with kernels that take any) or `int8`; RequestError for anything else.
        """
        layout = _layout(config, kernels, kv)
        self.pages, self.page_size, self.kv = pages, layout.padded(page_size), kv
        self._layers = [layout.pools(pages, self.page_size, dtype, device) for _ in range(config.num_layers)]

    @property
    def nbytes(self) -> int:
        """Of all pages."""
        return sum(pool.nbytes for pools in self._layers for pool in pools)

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

    def copy_from(self, smaller: KVCache) -> None:
        """Take over the first page of a cache of the same kind with shorter pages."""
        for mine, theirs in zip(self._layers, smaller._layers, strict=True):
            for pool, part in zip(mine, theirs, strict=True):
                pool[0, :, : part.shape[2]] = part[0]

    def copy_page(self, source: int, target: int) -> None:
        """Make one page, in all layers, what another is: for a sequence that goes on in two ways."""
        for pools in self._layers:
            for pool in pools:
                pool[target] = pool[source]


def bytes_per_page(
    config: ModelConfig,
    page_size: int,
    kv: KVType = "bf16",
    *,
    dtype: torch.dtype = torch.bfloat16,
    kernels: Kernels = reference,
) -> int:
    """Memory of one page in all layers, as `KVCache` would have it."""
    layout = _layout(config, kernels, kv)
    return config.num_layers * layout.nbytes(layout.padded(page_size), dtype)


def checked_kv(kv: str) -> KVType:
    """The name of a type of pages; RequestError for another."""
    if kv == "int8":
        return "int8"
    if kv == "bf16":
        return "bf16"
    raise RequestError(f"kv is {kv!r:.40}, it must be one of {', '.join(KV_TYPES)}")


def _layout(config: ModelConfig, kernels: Kernels, kv: KVType) -> KVLayout:
    return kernels.kv_layout(config.num_kv_heads, config.head_dim, checked_kv(kv))


def _within(ids: Tensor, end: int) -> bool:
    low, high = edges(ids) if len(ids) else (0, 0)
    return low >= 0 and high < end
