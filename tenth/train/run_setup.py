"""The model of a recipe, built to learn, with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tenth.errors import RequestError, TenthError
from tenth.kernels.backend import Backend
from tenth.kernels.choice import chosen_device
from tenth.kernels.reference import wide
from tenth.kernels.training import training_kernels
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.huggingface_export import exportable_as
from tenth.train.distill import Distillation
from tenth.train.low_rank import attach
from tenth.train.named import named_model, named_tokenizer
from tenth.train.objective import LanguageModelling, Objective
from tenth.train.recipe import ModelOptions, Recipe
from tenth.weights.checkpoint import Checkpoint, open_checkpoint
from tenth.weights.generation import GenerationDefaults
from tenth.weights.load import Progress, load_decoder
from tenth.weights.tokenizer import Tokenizer

Report = Callable[[str], Progress]
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, slots=True)
class Learner:
    """The model that learns, and what goes with it into the folder at the end.

    `start` has weights in full precision where the decoder computes in less, by name.
    """

    decoder: Decoder
    start: dict[str, Tensor]
    objective: Objective
    tokenizer: Tokenizer | None
    generation: GenerationDefaults | None


def open_learner(recipe: Recipe, report: Report) -> Learner:
    """Build the model of a recipe with kernels that have gradients; nothing is written."""
    device, dtype = chosen_device(recipe.run.device), DTYPES[recipe.precision.compute]
    with ExitStack() as stack:
        checkpoint = None
        if recipe.model.start:
            with _of("model.from"):
                checkpoint = stack.enter_context(open_checkpoint(named_model(recipe.model.start, report)))
        tokenizer = _tokenizer(recipe.model, checkpoint, report)
        generation = None if checkpoint is None else checkpoint.generation()
        source = _source(recipe, checkpoint, wide(dtype), report)
    exportable_as(source.config, source.config.model_type)
    if tokenizer is not None and tokenizer.vocabulary > source.config.vocab_size:
        raise RequestError(
            f"the tokenizer has {tokenizer.vocabulary} tokens, the model's vocab_size is {source.config.vocab_size}"
        )
    on = Backend(dtype, device, training_kernels(recipe.run.threads or None))
    objective = _objective(recipe, on, tokenizer, report)
    decoder = _rebuilt(source, on)
    start = {name: p.detach() for name, p in source.named_parameters() if on.dtype != wide(on.dtype)}
    if recipe.low_rank is not None:
        attach(decoder, recipe.low_rank)
    if tokenizer is not None:
        generation = (generation or GenerationDefaults()).with_ends(tokenizer.end_ids)
    return Learner(decoder, start, objective, tokenizer, generation)


@torch.no_grad()
def _rebuilt(source: Decoder, on: Backend) -> Decoder:
    """The same model in the type and on the kernels of `on`; biases of routers stay without gradients."""
    decoder, values = Decoder(source.config, on=on), dict(source.named_parameters())
    for name, parameter in decoder.named_parameters():
        parameter.copy_(values[name])
    return decoder


def _objective(recipe: Recipe, on: Backend, tokenizer: Tokenizer | None, report: Report) -> Objective:
    if recipe.distill is None:
        return LanguageModelling()
    with _of("distill.teacher"):
        path = named_model(recipe.distill.teacher, report)
    with open_checkpoint(path) as checkpoint:
        if checkpoint.packed is not None:
            raise RequestError(f"{checkpoint.path}: a teacher of packed weights is slow: name what it was made from")
        theirs = _own_tokenizer(checkpoint)
        if tokenizer is not None and theirs is not None and theirs.fingerprint != tokenizer.fingerprint:
            raise RequestError(f"{checkpoint.path}: a teacher must have the model's tokenizer, this has another")
        teacher = load_decoder(checkpoint, dtype=on.dtype, progress=report("reading the teacher"))
    return Distillation(_rebuilt(teacher, on), recipe.distill)


def _source(recipe: Recipe, checkpoint: Checkpoint | None, dtype: torch.dtype, report: Report) -> Decoder:
    """The weights to start from, in full precision."""
    if checkpoint is not None:
        if checkpoint.packed is not None:
            raise RequestError(f"{checkpoint.path}: packed weights do not learn: go on from what they were made from")
        return load_decoder(checkpoint, dtype=dtype, progress=report("reading the model"))
    assert recipe.model.shape is not None, "one of both is given"
    return _drawn(recipe.model, recipe.model.shape, recipe.run.seed, dtype)


@torch.no_grad()
def _drawn(options: ModelOptions, shape: ModelConfig, seed: int, dtype: torch.dtype) -> Decoder:
    """Starting weights by chance."""
    decoder = initialise(Decoder(shape, dtype=dtype), seed, options.init_std)
    if options.init_embedding_std:
        for parameter in decoder.embedding.parameters():
            parameter.mul_(options.init_embedding_std / options.init_std)
    return decoder


def _tokenizer(options: ModelOptions, checkpoint: Checkpoint | None, report: Report) -> Tokenizer | None:
    if options.tokenizer:
        with _of("model.tokenizer"):
            return named_tokenizer(options.tokenizer, report)
    return None if checkpoint is None else _own_tokenizer(checkpoint)


@contextmanager
def _of(key: str) -> Iterator[None]:
    """Errors name the key of the recipe that they are about."""
    try:
        yield
    except TenthError as error:
        raise type(error)(f"{key}: {error}") from None


def _own_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """That of a model, or None where it was saved without: token files need none."""
    if checkpoint.format == "safetensors" and not (checkpoint.path / "tokenizer.json").exists():
        return None
    return checkpoint.tokenizer()
