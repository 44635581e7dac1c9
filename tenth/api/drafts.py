"""Who guesses tokens ahead for an engine, by name."""

from __future__ import annotations

from typing import Literal, Protocol

from tenth.engine.draft import PromptLookup, Proposer
from tenth.engine.draft_length import DraftLength
from tenth.engine.draft_model import DraftModel, Vocabulary
from tenth.engine.draft_suffix import AnswerStore, SuffixMatch
from tenth.engine.drafted import Drafting
from tenth.engine.request import Request
from tenth.engine.speculation import MakeProposer
from tenth.errors import RequestError
from tenth.model.decoder import Decoder
from tenth.weights.tokenizer import Tokenizer

DraftKind = Literal["off", "lookup", "suffix"]
DRAFT_KINDS: tuple[DraftKind, ...] = ("off", "lookup", "suffix")


class DraftSource(Protocol):
    """A small model with its tokenizer."""

    decoder: Decoder
    tokenizer: Tokenizer


class Drafters:
    """Who drafts for a model's own generations: what was learned from earlier ones stays."""

    def __init__(self, of: DraftSource) -> None:
        self._of = of
        self._known: dict[object, tuple[MakeProposer, DraftLength]] = {}

    def drafting(self, draft: DraftKind | DraftSource, request: Request) -> Drafting | None:
        """For one generation; None where nobody drafts. RequestError as `proposer_by`."""
        if draft not in self._known:
            make = proposer_by(draft, self._of)
            if make is None:
                return None
            self._known[draft] = make, DraftLength()
        make, length = self._known[draft]
        return Drafting(make(request), length)


def proposer_by(draft: DraftKind | DraftSource, of: DraftSource) -> MakeProposer | None:
    """Proposers that read the text itself, earlier answers too, or ask a small model.

    RequestError where there is none of that name, or the model has not the vocabulary `of` the one it drafts for.
    """
    if draft == "off":
        return None
    if draft == "lookup":
        return _lookup
    if draft == "suffix":
        store = AnswerStore()
        return lambda request: SuffixMatch(store, request.tenant)
    if isinstance(draft, str):
        raise RequestError(f"draft is {draft!r:.40}, it must be {', '.join(DRAFT_KINDS)} or a model that was loaded")
    model = DraftModel(draft.decoder, _vocabulary(draft), _vocabulary(of))
    return lambda _: model.sequence()


def _lookup(_: Request) -> Proposer:
    return PromptLookup()


def _vocabulary(source: DraftSource) -> Vocabulary:
    return Vocabulary(source.decoder.config.vocab_size, source.tokenizer.fingerprint)
