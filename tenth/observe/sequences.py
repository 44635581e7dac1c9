"""Sequences of equal length in a cache of exactly their size, shown to a decoder without a sampler between.

B sequences, T tokens of each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tenth.engine.captured import runner_of
from tenth.errors import MachineError
from tenth.model.batch import Batch, Output, Placement, Want
from tenth.model.cache import KVCache
from tenth.model.decoder import Decoder
from tenth.routing.record import RecordKind


class Sequences:
    """`count` sequences with room for `length` tokens each: sequence s has page s of the cache."""

    def __init__(self, decoder: Decoder, count: int, length: int) -> None:
        self.count = count
        self._runner = runner_of(decoder)  # its own: what it captures goes when the cache goes
        try:
            self.cache = KVCache(decoder.config, count, length, decoder.dtype, decoder.device, decoder.kernels)
        except RuntimeError:  # what torch raises where memory cannot be had
            raise MachineError(f"there is no memory for the cache of {count} sequences of {length} tokens") from None

    def show(self, tokens_BT: Tensor, start: int, record: RecordKind = "none") -> Output:
        """Show each sequence its next tokens, which are at positions from `start` on; logits of the last ones."""
        return self._step(tokens_BT, start, torch.arange(self.count), record)

    def fill(self, tokens_BT: Tensor, start: int, chunk: int) -> None:
        """Show the sequences their next tokens one after the other, `chunk` tokens at once."""
        for page in range(self.count):
            for at in range(0, tokens_BT.shape[1], chunk):
                self._step(tokens_BT[page : page + 1, at : at + chunk], start + at, torch.tensor([page]), "none")

    @torch.inference_mode()
    def _step(self, tokens_BT: Tensor, start: int, pages_B: Tensor, record: RecordKind) -> Output:
        count, new = tokens_BT.shape
        positions_T = torch.arange(start, start + new)
        batch = Batch(
            bounds=tuple(range(0, count * new + 1, new)),
            positions_T=positions_T.repeat(count),
            tokens_T=tokens_BT.flatten(),
            placement=Placement(
                (pages_B[:, None] * self.cache.page_size + positions_T).flatten(),
                tuple(pages_B[:, None]),
                (start + new,) * count,
            ),
        )
        return self._runner(batch, self.cache, Want(logits="last", routing=record))
