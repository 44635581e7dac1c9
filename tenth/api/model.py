"""A model in one hand: load it, call it, generate, stream, chat.

B rows of a batch, T tokens, V vocabulary, D model width.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from tenth.api.drafts import Drafters, DraftKind, proposer_by
from tenth.api.options import Options, Settings
from tenth.api.stream import Generation, Stream
from tenth.engine.captured import runner_of
from tenth.engine.drafted import Drafting, drafted_generate
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.generate import Step, cached_generate, check_room, naive_generate
from tenth.engine.grammar_compiler import GrammarCompiler
from tenth.engine.grammar_vocabulary import Vocabulary
from tenth.engine.request import Request
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.sequence import CachedSequence
from tenth.errors import ConfigError, RequestError, TemplateError
from tenth.kernels.choice import choose_kernels, chosen_device
from tenth.kernels.contract import KVType
from tenth.kernels.cpu.expert_cache import ExpertCache
from tenth.kernels.cpu.operations import CpuKernels
from tenth.model.batch import Batch, Want
from tenth.model.cache import checked_kv
from tenth.model.config import ModelConfig, fitted_limit
from tenth.model.decoder import Decoder
from tenth.routing.record import RecordKind, Routing
from tenth.train.named import named_model
from tenth.weights.budget import expert_cache, memory_bytes
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.expert_counts import add_counts, seed_from
from tenth.weights.generation import GenerationDefaults
from tenth.weights.identity import files_identity
from tenth.weights.load import Progress, load_decoder
from tenth.weights.save import save_model
from tenth.weights.template import ChatTemplate
from tenth.weights.text_stream import TextStream
from tenth.weights.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

Message = Mapping[str, Any]
_PROMPT = "a prompt is a text, a list of token ids, or a list of messages"
_CHAT = 'a chat is a list of messages {"role": ..., "content": ...}'

Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """A forward pass over B rows of T tokens; `routing` has the rows end to end."""

    logits_BTV: Tensor
    hidden_BTD: Tensor | None
    routing: Routing | None


class Model:
    """A decoder with its tokenizer, chat template and defaults. `identity` tells its weights from others'."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        generation: GenerationDefaults | None = None,
        chat_template: str | None = None,
        notes: Sequence[str] = (),
        kv: KVType = "bf16",
        identity: str | None = None,
    ) -> None:
        self.identity = identity or uuid.uuid4().hex  # made here: like no other
        self.decoder, self.tokenizer, self.kv = decoder, tokenizer, checked_kv(kv)
        self._runner = runner_of(decoder)
        self.generation = generation or GenerationDefaults()
        self.notes = tuple(notes)
        self.end_ids = self.generation.end_ids | tokenizer.end_ids
        self.defaults = Settings(sampling=_sampling(self.generation))
        if chat_template is not None and not chat_template.strip():
            raise TemplateError("the chat template that was given is empty")
        source = tokenizer.chat_template if chat_template is None else chat_template
        self.template = ChatTemplate(source, variables=tokenizer.special_tokens) if source else None
        self._forbidden = frozenset(tokenizer.unknown_ids(decoder.config.vocab_size))
        self._idle: CachedSequence | None = None
        self._drafters = Drafters(self)

    @property
    def config(self) -> ModelConfig:
        """The shape of the network."""
        return self.decoder.config

    @property
    def expert_cache(self) -> ExpertCache | None:
        """The cache of experts that are on disk, with its statistics; None where all weights are in memory."""
        return expert_cache(self.decoder)

    def add_expert_counts(self, path: str | Path) -> None:
        """Add what its cache of experts was asked for to a file, for `load(expert_counts=)`; without one, nothing."""
        if self.expert_cache is not None:
            add_counts(self.expert_cache, Path(path))

    def __call__(
        self, tokens_BT: Tensor | Sequence[Sequence[int]], *, hidden: bool = False, routing: RecordKind = "choice"
    ) -> ModelOutput:
        """Run rows of equal length: logits of every position, and the routing record."""
        want = Want(hidden=hidden, routing=routing)
        tokens_BT = _rows(tokens_BT)
        batch = Batch.of(list(tokens_BT), device=self.decoder.device)
        out = self.decoder(batch, want=want)
        assert out.logits_NV is not None
        shape = (*tokens_BT.shape, -1)
        states = None if out.hidden_TD is None else out.hidden_TD.view(shape)
        return ModelOutput(out.logits_NV.view(shape), states, out.routing)

    def generate(self, prompt: Prompt, *, draft: DraftKind | Model = "off", **options: Unpack[Options]) -> Generation:
        """Continue a text, token ids, or a chat (a list of messages)."""
        stream = self.stream(prompt, draft=draft, **options)
        for _ in stream:
            pass
        return stream.result

    def chat(
        self, messages: Sequence[Message], *, draft: DraftKind | Model = "off", **options: Unpack[Options]
    ) -> Generation:
        """Answer a list of messages `{"role": ..., "content": ...}`."""
        if not all(isinstance(message, Mapping) for message in _items(messages, _CHAT)):
            raise RequestError(_CHAT)
        return self.generate(messages, draft=draft, **options)

    def stream(self, prompt: Prompt, *, draft: DraftKind | Model = "off", **options: Unpack[Options]) -> Stream:
        """The same, piece by piece as it comes.

        `draft` guesses tokens ahead where that pays, as in `engine`: the tokens that come are the same.
        """
        settings = self.defaults.updated(options)
        ids = self.encode(prompt, settings)
        check_room(self.decoder, ids, settings.max_tokens)
        fitted_limit(settings.limit, self.config)
        text = TextStream(self.tokenizer, settings.stop)
        team = self.decoder.kernels.machine if isinstance(self.decoder.kernels, CpuKernels) else True
        sampler = Sampler(settings.sampling, ids, self.config.vocab_size, self._forbidden, native=team)
        drafting = None if draft == "off" else self._drafters.drafting(draft, self.request(ids, settings))
        if drafting is not None and not settings.cache:
            raise RequestError(
                f"draft {draft if isinstance(draft, str) else 'by a model'} does nothing without a cache"
            )
        counts = None if drafting is None else drafting.counts
        return Stream(self._steps(ids, sampler, settings, drafting), text, sampler, len(ids), self.end_ids, counts)

    def _steps(
        self, ids: Sequence[int], sampler: Sampler, settings: Settings, drafting: Drafting | None
    ) -> Generator[Step]:
        limits: dict[str, Any] = {
            "max_tokens": settings.max_tokens,
            "end_ids": self.end_ids,
            "record": settings.routing,
            "limit": settings.limit,
        }
        if not settings.cache:
            yield from naive_generate(self.decoder, ids, sampler, **limits)
            return
        # the cached sequence of the last turn goes to one stream at a time; a second one begins its own
        sequence, self._idle = self._idle or CachedSequence(self._runner, self.kv), None
        try:
            if drafting is None:
                yield from cached_generate(sequence, ids, sampler, **limits)
            else:
                yield from drafted_generate(sequence, ids, sampler, drafting, **limits)
        finally:
            self._idle = sequence

    def request(self, ids: Sequence[int], settings: Settings, **others: Any) -> Request:
        """What the engine is asked for a prompt of these token ids; `others` are fields of its `Request`."""
        fitted_limit(settings.limit, self.config)
        return Request(
            tuple(ids),
            settings.max_tokens,
            settings.sampling,
            end_ids=self.end_ids,
            forbidden=self._forbidden,
            limit=settings.limit,
            record="none",
            **others,
        )

    def encode(self, prompt: Prompt, settings: Settings | None = None) -> list[int]:
        """The token ids a prompt becomes: text as it is, a chat through the model's template."""
        settings = settings or self.defaults
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, begin=True)
        items = _items(prompt, _PROMPT)
        messages = [item for item in items if isinstance(item, Mapping)]
        if messages and len(messages) == len(items):
            if self.template is None:
                words = (
                    "the model has no chat template; give one (--chat-template FILE), or generate from a plain prompt"
                )
                raise TemplateError(words)
            return self.template.encode(
                self.tokenizer, messages, tools=settings.tools, arguments=settings.template_arguments
            )
        ids = [item for item in items if type(item) is int]  # not isinstance: True is no token
        if len(ids) < len(items):
            raise RequestError(_PROMPT)
        return ids

    def engine(self, options: EngineOptions | None = None, *, draft: DraftKind | Model = "off") -> Engine:
        """An engine for many requests at once, with a cache of its own.

        `draft` guesses tokens ahead where that pays: `lookup` in the text so far, `suffix` in earlier answers too, or a
        small model with the same tokenizer. The tokens that come are the same.
        """
        tokenizer = self.tokenizer
        vocabulary = Vocabulary(tokenizer.bytes_by_id, tokenizer.added_ids, self.config.vocab_size, tokenizer.encode)
        grammars = GrammarCompiler(vocabulary)
        return Engine(self.decoder, options, proposer=proposer_by(draft, self), grammars=grammars)

    def save(self, folder: str | Path, *, model_type: str | None = None, progress: Progress | None = None) -> None:
        """Write a Hugging Face folder; see `tenth.weights.save.save_model`."""
        save_model(
            self.decoder,
            Path(folder),
            tokenizer=self.tokenizer,
            generation=self.generation.with_ends(self.end_ids),
            model_type=model_type,
            progress=progress,
        )


def _sampling(generation: GenerationDefaults) -> Sampling:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    stated = {name: getattr(generation, name) for name in names}
    try:
        return Sampling(**{name: value for name, value in stated.items() if value is not None})
    except RequestError as error:
        raise ConfigError(f"the model's own generation defaults: {error}") from None


def _rows(tokens_BT: object) -> Tensor:
    try:
        rows_BT = torch.as_tensor(tokens_BT)
    except (TypeError, ValueError, RuntimeError):  # rows of unequal length, or not numbers
        raise RequestError("tokens must be whole numbers in B rows of equal length T") from None
    if rows_BT.dim() != 2 or rows_BT.dtype not in (torch.int64, torch.int32):
        given = f"{str(rows_BT.dtype).removeprefix('torch.')} of shape {tuple(rows_BT.shape)}"
        raise RequestError(f"tokens must be whole numbers of shape (B, T), not {given}")
    return rows_BT


def _items(value: object, right: str) -> list[object]:
    """What a list (or the like) holds; RequestError with what would be right for anything else, bytes included."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise RequestError(right)
    return list(value)


def resolve(name: str, report: Callable[[str], Progress] | None = None, *, packed: bool = False) -> Path:
    """Where a model lies: a path, a hub name, `default` (made on first use), or `default-dense`, its source.

    With `packed` the default is as the native kernels read it.
    """
    return named_model(name, report or _silent, packed=packed)


def load(
    model: str | Path = "default",
    *,
    dtype: torch.dtype | str = "auto",
    device: str = "cpu",
    backend: str = "auto",
    threads: int | None = None,
    kv: str = "bf16",
    memory: str | int | None = None,
    expert_counts: str | Path | None = None,
    chat_template: str | None = None,
    report: Callable[[str], Progress] | None = None,
    to_run: bool = False,
) -> Model:
    """Load a model by path, hub name, `default` or `default-dense`.

    `dtype` is a torch type or its name; `auto` keeps a file's own bfloat16 or float32. `chat_template` replaces the
    model's own (Jinja source). `backend` is `reference` or `cpu` (native kernels, for packed models), `auto` the
    best there is; `threads` compute (None: one a core). `kv` is how keys and values of earlier tokens are kept: `bf16`,
    or `int8` in half the memory. `memory` is what a packed model may take, such as `8GB` or a number of bytes: experts
    beyond it stay on disk (`tenth.weights.budget` says what it covers), and the cache begins with those that
    `expert_counts` says were used most, a file of `Model.add_expert_counts`; one that is not there yet says nothing.
    `report` is told what is being done and returns where its progress goes. `to_run`: the model will be neither
    trained nor saved, so that the default may come packed, for the native kernels.
    """
    chosen, place, pages = chosen_dtype(dtype), chosen_device(device), checked_kv(kv)
    budget = None if memory is None else memory_bytes(memory)
    if expert_counts is not None and memory is None:
        raise RequestError("counts of experts are for a model within a budget: say `memory` too")
    packed = to_run and chosen == "auto" and place.type == "cpu" and backend in ("auto", "cpu")
    path = resolve(str(model), report, packed=packed)
    with open_checkpoint(path) as checkpoint:
        tokenizer = checkpoint.tokenizer()
        generation = checkpoint.generation()
        progress = report("loading weights") if report else None
        kernels = choose_kernels(
            backend, packed=checkpoint.packed is not None, head_dim=checkpoint.config.head_dim, threads=threads
        )
        decoder = load_decoder(
            checkpoint, dtype=chosen, device=place, kernels=kernels, memory=budget, progress=progress
        )
        notes = [f"config key {key!r} is ignored" for key in checkpoint.ignored_keys]
        notes += [f"tensor {name!r} is skipped: {reason}" for name, reason in checkpoint.skipped.items()]
    cache = expert_cache(decoder)
    if cache is None and expert_counts is not None:
        notes.append(f"counts of experts ({expert_counts}) do nothing: all weights fit into memory")
    if cache is not None and expert_counts is not None and Path(expert_counts).exists():
        seed_from(cache, Path(expert_counts))
    return Model(
        decoder,
        tokenizer,
        generation=generation,
        chat_template=chat_template,
        notes=notes,
        kv=pages,
        identity=files_identity(path),
    )


def chosen_dtype(dtype: torch.dtype | str) -> torch.dtype | Literal["auto"]:
    """A torch type by its name; `auto` stays `auto`, RequestError for anything else."""
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if dtype == "auto":
        return "auto"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise RequestError(f"dtype is {dtype!r}, it must be auto or one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _silent(_: str) -> Progress:
    return lambda done, total: None
