"""A vocabulary of our own from text: byte-level BPE by the `tokenizers` library."""

from __future__ import annotations

import json
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tenth.data.document import Document
from tenth.errors import RequestError, TextError
from tenth.weights.tokenizer import Tokenizer
from tenth.weights.tokenizer_files import Definition, check_document, settle_added

END = "<|endoftext|>"
_FEWEST = 257  # the bytes and the end
_MOST = 1 << 20
_LONGEST_TOKEN = 32  # characters: rows of dashes are no words


def train_tokenizer(documents: Iterable[Document], vocabulary: int) -> Tokenizer:
    """Learn `vocabulary` tokens: `<|endoftext|>` (id 0), the 256 bytes, then merges in order of frequency.

    Digits stand alone, no text is lost or changed. The same text gives the same tokens. RequestError where
    `vocabulary` is too small or large, TextError where the text is too little for it.
    """
    if not _FEWEST <= vocabulary <= _MOST:
        raise RequestError(f"the vocabulary is {vocabulary}, it must be {_FEWEST} to {_MOST} tokens")
    learned = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    learned.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    learned.train_from_iterator((document.text for document in documents), trainer)
    found = learned.get_vocab_size()
    if found < vocabulary:
        raise TextError(f"the text has pieces for {found} tokens only, {vocabulary} were asked for")
    return _ours(learned)


def _ours(learned: tokenizers.Tokenizer) -> Tokenizer:
    document, where = json.loads(learned.to_str()), "the learned tokenizer"
    check_document(document, where)
    specials = {"eos_token": END}
    end = document["model"]["vocab"][END]
    return Tokenizer(
        Definition(
            document=document,
            specials=specials,
            begins=(),
            ends=frozenset({end}),
            templates={},
            where=where,
            added=settle_added(document, [], specials, where),
        )
    )
