"""Carved models as folders: carved from a checkpoint, rebuilt from a small file, and that file from a healed model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from tenth.errors import RequestError
from tenth.model.decoder import Decoder
from tenth.train.artefact import Artefact, assemble, healed_artefact, weights_hash
from tenth.train.artefact_file import ARTEFACT_NAME, open_artefact, save_artefact
from tenth.train.calibration import calibration_documents
from tenth.train.carve import Carved, CarveOptions, carve
from tenth.weights.checkpoint import Checkpoint, open_checkpoint
from tenth.weights.load import Progress, load_decoder
from tenth.weights.save import save_model

Report = Callable[[str], Progress]


def carve_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    options: CarveOptions,
    corpora: Sequence[str],
    tokens: int,
    dtype: torch.dtype | Literal["auto"],
    report: Report,
) -> Carved:
    """Carve a dense model into `folder`, which also gets the file that rebuilds it (`ARTEFACT_NAME`)."""
    tokenizer = checkpoint.tokenizer()
    documents = calibration_documents(corpora, tokenizer, tokens, options.seed)
    dense = load_decoder(checkpoint, dtype=dtype, progress=report("reading the dense model"))
    carved = carve(dense, documents, options, report("splitting neurons, fitting routers"))
    artefact = Artefact(weights_hash(checkpoint), options, carved.layers, ({},) * len(carved.layers))
    _save(checkpoint, carved.decoder, folder, report)
    save_artefact(artefact, folder / ARTEFACT_NAME)
    return carved


def rebuild_checkpoint(checkpoint: Checkpoint, artefact: Artefact, folder: Path, report: Report) -> Decoder:
    """The carved model in `folder`, from its dense source and what was kept of it."""
    decoder = assemble(checkpoint, artefact, report("reading the dense model"))
    _save(checkpoint, decoder, folder, report)
    return decoder


def keep_healed(
    carved: Path, healed: Path, out: Path, rank: int, shared_rank: int, top_k: int | None, report: Report
) -> int:
    """Write to `out` what makes the healed model out of the dense source; returns the bytes.

    With `top_k` it runs with that many experts at work: healed with fewer, it is nearer to the dense one with more.

    RequestError where `carved` is not a carved folder, `healed` a model of another shape, or more was learned than
    such a file holds: weights outside of the feed-forward layers, or deltas of a higher rank.
    """
    for name, value in (("rank", rank), ("shared_rank", shared_rank)):
        if value < 1:
            raise RequestError(f"{name} is {value}, it must be at least 1")
    if out.exists():
        raise RequestError(f"{out}: exists; name a new file")
    if not (carved / ARTEFACT_NAME).exists():
        raise RequestError(f"{carved}: is not a folder of `tenth carve`: it has no {ARTEFACT_NAME}")
    artefact = open_artefact(carved / ARTEFACT_NAME)
    with open_checkpoint(carved) as before, open_checkpoint(healed) as after:
        if before.config != after.config:
            raise RequestError(f"{healed}: was not trained from {carved}: their configs differ")
        models = (
            load_decoder(before, dtype=torch.float32, progress=report("reading the carved model")),
            load_decoder(after, dtype=torch.float32, progress=report("reading the healed model")),
        )
    kept = healed_artefact(artefact, *models, rank, shared_rank)
    if top_k is not None:
        kept = replace(kept, options=replace(kept.options, top_k=top_k))
    return save_artefact(kept, out)


def _save(checkpoint: Checkpoint, decoder: Decoder, folder: Path, report: Report) -> None:
    tokenizer = checkpoint.tokenizer()
    generation = checkpoint.generation().with_ends(tokenizer.end_ids)
    save_model(decoder, folder, tokenizer=tokenizer, generation=generation, progress=report("writing the model"))
