"""Sequences of equal length in a cache of exactly their size, shown to a decoder without a sampler between.

B sequences, T tokens of each.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tenth.engine.captured import runner_of
from tenth.engine.room import cache_of
from tenth.errors import MachineError
from tenth.kernels.contract import KVType
from tenth.model.batch import Batch, Output, Placement, Want
from tenth.model.decoder import Decoder
from tenth.routing.limit import ExpertLimit, TokenLimits
from tenth.routing.record import RecordKind


class Sequences:
    """`count` sequences with room for `length` tokens each: sequence s has page s of the cache; all have one limit."""

    def __init__(
        self, decoder: Decoder, count: int, length: int, kv: KVType = "bf16", limit: ExpertLimit | None = None
    ) -> None:
        self.count, self._limit = count, limit
        self._runner = runner_of(decoder)  # its own: what it captures goes when the cache goes
        try:
            self.cache = cache_of(self._runner, count, length, kv)
        except MachineError as error:
            raise MachineError(f"{count} sequences of {length} tokens: {error}") from None
        # numpy: a step between steps takes a fraction of torch's time to set up
        self._starts_B1 = np.arange(count)[:, None] * self.cache.page_size
        self._tables = tuple(torch.arange(count)[:, None])

    def show(self, tokens_BT: Tensor, start: int, record: RecordKind = "none") -> Output:
        """Show each sequence its next tokens, which are at positions from `start` on; logits of the last ones."""
        return self._step(tokens_BT, start, slice(None), record)

    def fill(self, tokens_BT: Tensor, start: int, chunk: int) -> None:
        """Show the sequences their next tokens one after the other, `chunk` tokens at once."""
        for page in range(self.count):
            for at in range(0, tokens_BT.shape[1], chunk):
                self._step(tokens_BT[page : page + 1, at : at + chunk], start + at, slice(page, page + 1), "none")

    @torch.inference_mode()
    def _step(self, tokens_BT: Tensor, start: int, pages: slice, record: RecordKind) -> Output:
        count, new = tokens_BT.shape
        positions_BT = np.broadcast_to(np.arange(start, start + new), (count, new))
        batch = Batch(
            bounds=tuple(range(0, count * new + 1, new)),
            positions_T=torch.from_numpy(positions_BT.flatten()),
            tokens_T=tokens_BT.flatten(),
            placement=Placement(
                torch.from_numpy((self._starts_B1[pages] + positions_BT).flatten()),
                self._tables[pages],
                (start + new,) * count,
            ),
            limits=TokenLimits.of([self._limit], [count * new]),
        )
        return self._runner(batch, self.cache, Want(logits="last", routing=record))
