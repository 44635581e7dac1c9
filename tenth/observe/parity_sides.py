"""The two models that are compared: opened, and known to speak of the same tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tenth.errors import RequestError, TokenizerError
from tenth.kernels.choice import choose_kernels, describe
from tenth.kernels.contract import Kernels
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.weights.by_layer import DecoderByLayer
from tenth.weights.checkpoint import Checkpoint, open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.tokenizer import Tokenizer

_FILLING = re.compile(rb"\[PAD\d+\]|<\|?(pad|extra|reserved|unused|dummy)[\w|-]*>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Side:
    """One model: its files, how it computes, and its tokenizer, where it has one."""

    name: str
    checkpoint: Checkpoint
    by_layer: DecoderByLayer
    kernels: Kernels
    tokenizer: Tokenizer | None

    @property
    def config(self) -> ModelConfig:
        """The shape of the network."""
        return self.checkpoint.config

    @property
    def decoder(self) -> Decoder:
        """The network, whose weights are there within `by_layer.part`."""
        return self.by_layer.decoder

    @property
    def end_ids(self) -> frozenset[int]:
        """Behind which a greedy answer is over."""
        own = frozenset[int]() if self.tokenizer is None else self.tokenizer.end_ids
        return own | self.checkpoint.generation().end_ids

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file for each parameter."""
        nbytes = sum(info.nbytes for info in self.checkpoint.source.tensors.values())
        return 8 * nbytes / self.config.parameters.total

    def whole(self) -> Decoder:
        """The network with all its weights in memory; MachineError where they do not fit."""
        if self.checkpoint.packed is not None:
            return self.decoder
        return load_decoder(self.checkpoint, dtype=self.decoder.dtype, kernels=self.kernels)

    def facts(self) -> dict[str, object]:
        """As a report names them."""
        return {
            "name": self.name,
            "format": self.checkpoint.format,
            "backend": describe(self.kernels),
            "dtype": str(self.decoder.dtype).removeprefix("torch."),
            "parameters": self.config.parameters.total,
            "bits_per_weight": round(self.bits_per_weight, 3),
        }


@contextmanager
def opened(
    path: Path,
    name: str,
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    backend: str = "auto",
    threads: int | None = None,
) -> Iterator[Side]:
    """Open one side; errors as of `open_checkpoint` and `load_decoder`."""
    with open_checkpoint(path) as checkpoint:
        packed = checkpoint.packed is not None
        kernels = choose_kernels(backend, packed=packed, head_dim=checkpoint.config.head_dim, threads=threads)
        try:
            tokenizer = checkpoint.tokenizer()
        except TokenizerError:  # a model of random weights; a corpus of token ids does without
            tokenizer = None
        own = "auto" if packed else dtype
        yield Side(name, checkpoint, DecoderByLayer(checkpoint, dtype=own, kernels=kernels), kernels, tokenizer)


def shared_vocabulary(a: Side, b: Side) -> int:
    """How many ids both have, for the same tokens; RequestError where an id is another token in each."""
    size = min(a.config.vocab_size, b.config.vocab_size)
    if a.tokenizer is None or b.tokenizer is None:
        if a.config.vocab_size != b.config.vocab_size:
            raise RequestError(
                f"the vocabularies have {a.config.vocab_size} and {b.config.vocab_size} ids, and without both "
                "tokenizers nobody knows which are the same: parity needs one vocabulary"
            )
        return size
    ours, theirs = a.tokenizer.bytes_by_id, b.tokenizer.bytes_by_id
    for token in range(max(len(ours), len(theirs))):
        one, other = (ids[token] if token < len(ids) else None for ids in (ours, theirs))
        if one != other and not (_is_filling(one) and _is_filling(other)):
            raise RequestError(
                f"the tokenizers differ: token {token} is {_shown(one)} in A and {_shown(other)} in B; "
                "two models are compared token by token, which needs one vocabulary"
            )
    return size


def _is_filling(spelt: bytes | None) -> bool:
    return spelt is None or _FILLING.fullmatch(spelt) is not None


def _shown(spelt: bytes | None) -> str:
    return "missing" if spelt is None else repr(spelt.decode(errors="replace"))[:40]
