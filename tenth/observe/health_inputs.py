"""What the experts of a layer are compared on: inputs of that layer that all of them are run on, chosen or not.

N shared tokens, T tokens of a pass, D model width, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp

SHARED_TOKENS = 256
"""Inputs that every expert of a layer is run on."""


@dataclass(slots=True)
class LayerInputs:
    """Inputs of a sparse layer's experts, and how large the stream behind it is: its largest and median magnitude.

    The largest is of all tokens, the rest of the shared ones.
    """

    parts: list[Tensor] = field(default_factory=list)
    largest: float = 0.0
    medians: list[float] = field(default_factory=list)

    @property
    def x_ND(self) -> Tensor:
        """The inputs of the shared tokens."""
        return torch.cat(self.parts)

    @property
    def median(self) -> float:
        """Of the stream's magnitudes; NaN where nothing was seen."""
        return float(np.median(self.medians)) if self.medians else float("nan")


class SharedInputs:
    """Picks tokens, evenly over all that a decoder will be shown, and keeps what enters each sparse layer for them."""

    def __init__(self, decoder: Decoder, tokens: int, count: int = SHARED_TOKENS) -> None:
        """`tokens` are shown in all while `watching` is open."""
        self._at_N = torch.linspace(0, tokens - 1, min(count, tokens)).round().long()
        self._blocks = {index: decoder.blocks()[index] for index in decoder.config.sparse_layers}
        self.layers = {index: LayerInputs() for index in self._blocks}
        self._seen = dict.fromkeys(self._blocks, 0)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this is open, what the decoder is shown is looked at."""
        with ExitStack() as stack:
            for index, block in self._blocks.items():
                for hook in (self._before(index, block.mlp), self._behind(index, block)):
                    stack.callback(hook.remove)
            yield

    def _here(self, index: int, tokens: int) -> Tensor:
        begin = self._seen[index]
        return self._at_N[(self._at_N >= begin) & (self._at_N < begin + tokens)] - begin

    def _before(self, index: int, mlp: nn.Module) -> Any:
        def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
            x_TD: Tensor = given[0]
            self.layers[index].parts.append(x_TD[self._here(index, len(x_TD))].clone())

        return mlp.register_forward_pre_hook(keep)

    def _behind(self, index: int, block: nn.Module) -> Any:
        def measure(_: nn.Module, given: Any, result: tuple[Tensor, object]) -> None:
            y_TD, layer = result[0], self.layers[index]
            here_N = self._here(index, len(y_TD))
            layer.largest = max(layer.largest, float(y_TD.abs().max()))
            if len(here_N):
                layer.medians.append(float(y_TD[here_N].float().abs().median()))
            self._seen[index] += len(y_TD)

        return block.register_forward_hook(measure)


@torch.inference_mode()
def forced_outputs(decoder: Decoder, mlp: SparseMlp, x_ND: Tensor, experts: Sequence[int]) -> Iterator[Tensor]:
    """Each expert's outputs (N, D) for all tokens, whatever the router says of it: float32."""
    gates_N1 = torch.ones(len(x_ND), 1, device=x_ND.device)
    for expert in experts:
        chosen_N1 = torch.full((len(x_ND), 1), expert, dtype=torch.int64, device=x_ND.device)
        yield decoder.kernels.expert_ffn(x_ND, chosen_N1, gates_N1, mlp.experts).float()
