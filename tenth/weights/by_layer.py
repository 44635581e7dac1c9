"""A model of which only the parts at work are in memory: for passes that go layer by layer over many tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from tenth.kernels import reference
from tenth.kernels.contract import Kernels
from tenth.model.decoder import Decoder
from tenth.weights.checkpoint import Checkpoint
from tenth.weights.load import fill, load_decoder, natural_dtype
from tenth.weights.names import check_shapes


class DecoderByLayer:
    """`decoder` is the whole network; its weights may be used within `part`, which reads them and lets them go.

    A packed model is mapped as a whole: there `part` does nothing. Errors as of `load_decoder`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype | Literal["auto"] = "auto",
        kernels: Kernels = reference,
    ) -> None:
        self._checkpoint = checkpoint
        if checkpoint.packed is not None:
            self.decoder = load_decoder(checkpoint, dtype=dtype, kernels=kernels)
            return
        chosen = natural_dtype(checkpoint) if dtype == "auto" else dtype
        self.decoder = Decoder(checkpoint.config, dtype=chosen, device="meta").eval()
        shapes = {name: info.shape for name, info in checkpoint.source.tensors.items()}
        check_shapes(self.decoder, checkpoint.slots, shapes, str(checkpoint.path))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """`embedding`, `layers.3`, `norm` or `head` with its weights; a head that is the embedding reads that."""
        if self._checkpoint.packed is not None:
            yield
            return
        module = self.decoder.get_submodule(name)
        module.to_empty(device="cpu")
        self._read(name)
        try:
            yield
        finally:
            module.to("meta")

    @torch.no_grad()
    def _read(self, part: str) -> None:
        tied = part == "head" and self._checkpoint.config.tie_word_embeddings
        beginnings = (f"{part}.", "embedding.") if tied else (f"{part}.",)
        parameters = dict(self.decoder.named_parameters(remove_duplicate=False))
        source = self._checkpoint.source
        for name, slot in self._checkpoint.slots.items():
            if slot.parameter.startswith(beginnings):
                target = slot.view(parameters[slot.parameter])
                fill(slot, target, source.tensors[name], self._checkpoint)
