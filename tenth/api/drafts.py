"""Who guesses tokens ahead for an engine, by name."""

from __future__ import annotations

from typing import Literal, Protocol

from tenth.engine.draft import PromptLookup, Proposer
from tenth.engine.draft_model import DraftModel, Vocabulary
from tenth.engine.draft_suffix import AnswerStore, SuffixMatch
from tenth.engine.request import Request
from tenth.engine.speculation import MakeProposer
from tenth.model.decoder import Decoder
from tenth.weights.tokenizer import Tokenizer

DraftKind = Literal["off", "lookup", "suffix"]
DRAFT_KINDS: tuple[DraftKind, ...] = ("off", "lookup", "suffix")


class DraftSource(Protocol):
    """A small model with its tokenizer."""

    decoder: Decoder
    tokenizer: Tokenizer


def proposer_by(draft: DraftKind | DraftSource, of: DraftSource) -> MakeProposer | None:
    """Proposers that read the text itself, earlier answers too, or ask a small model.

    RequestError where that has not the vocabulary `of` the model it drafts for.
    """
    if draft == "off":
        return None
    if draft == "lookup":
        return _lookup
    if draft == "suffix":
        store = AnswerStore()
        return lambda request: SuffixMatch(store, request.tenant)
    model = DraftModel(draft.decoder, _vocabulary(draft), _vocabulary(of))
    return lambda _: model.sequence()


def _lookup(_: Request) -> Proposer:
    return PromptLookup()


def _vocabulary(source: DraftSource) -> Vocabulary:
    return Vocabulary(source.decoder.config.vocab_size, source.tokenizer.fingerprint)
