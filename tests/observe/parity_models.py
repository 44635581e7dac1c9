"""Small models on disk for comparisons: one, and what becomes of it when something is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tenth.api import Model
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.observe.parity import VerifyOptions, verify
from tenth.observe.parity_corpus import Corpus
from tenth.observe.parity_sides import Side, opened
from tenth.quantize.nearest import quantize
from tenth.quantize.policy import Policy
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.generation import GenerationDefaults
from tests.api.tiny import tiny_tokenizer

LAYERS = 6
CONFIG = replace(preset("tiny-moe"), num_layers=LAYERS, sparse_layers=tuple(range(1, LAYERS)), context_length=512)

Change = Callable[[Decoder], object]


def decoder_of(config: ModelConfig = CONFIG, change: Change | None = None) -> Decoder:
    decoder = initialise(Decoder(config), 0, std=0.08).requires_grad_(False)
    if change is not None:
        with torch.no_grad():
            change(decoder)
    return decoder


def write(folder: Path, change: Change | None = None, config: ModelConfig = CONFIG) -> Path:
    """The model, changed, with a tokenizer of bytes; always the same but for the change."""
    aside = folder.with_name(folder.name + ".tokenizer")
    aside.mkdir(parents=True)
    Model(decoder_of(config, change), tiny_tokenizer(aside), generation=GenerationDefaults()).save(folder)
    return folder


def quantised(source: Path, folder: Path, bits: int) -> Path:
    with open_checkpoint(source) as checkpoint:
        quantize(checkpoint, folder, Policy(bits))
    return folder


def noise(share: float, seed: int = 1) -> Change:
    """A little of each matrix, everywhere."""

    def change(decoder: Decoder) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in decoder.parameters():
            parameter += share * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator)

    return change


def negate(name: str) -> Change:
    return lambda decoder: decoder.get_parameter(name).neg_()


def windows(count: int = 6, length: int = 64, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for _ in range(count)]


def corpus(ids: Sequence[Sequence[int]] | None = None) -> Corpus:
    pieces = [list(piece) for piece in (windows() if ids is None else ids)]
    return Corpus(("test",), pieces, [piece[:8] for piece in pieces[:2]], len(pieces))


@contextmanager
def sides(a: Path, b: Path, **options: Any) -> Iterator[tuple[Side, Side]]:
    with opened(a, "a", **options) as one, opened(b, "b", **options) as other:
        yield one, other


def compared(a: Path, b: Path, *, share: float = 1.0, greedy: int = 0, **options: Any) -> dict[str, Any]:
    with sides(a, b, **options) as (one, other):
        return verify(one, other, corpus(), VerifyOptions(share, 8, greedy))
