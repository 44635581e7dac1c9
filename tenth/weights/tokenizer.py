"""Text to token ids and back, with every control token inert unless it is asked for."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from tenth.errors import TokenizerError
from tenth.weights.tokenizer_added import Cutter, Marking
from tenth.weights.tokenizer_backend import after_the_first, build, is_byte_level, strips_space, without_added
from tenth.weights.tokenizer_bytes import Detokenizer, byte_alphabet, token_bytes
from tenth.weights.tokenizer_files import Definition, read_folder, write_folder
from tenth.weights.tokenizer_gguf import read_metadata

# Texts end and turns end with these in the chat formats that are about, whatever the files say.
_WELL_KNOWN_ENDS = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end_of_turn|>",
)


class Tokenizer:
    """A tokenizer of the `tokenizers` library, around which added tokens are handled here.

    `encode` treats added tokens in a text as ordinary text; ids of control tokens come from a chat template
    (`ChatTemplate.encode`) or from `specials=True`. A byte that the vocabulary lacks (SmolLM2 has none for some control
    characters) is dropped, as every implementation does.
    """

    def __init__(self, definition: Definition):
        self._definition = definition
        self._vocabulary: dict[str, int] = definition.document["model"]["vocab"]
        self._byte_level = is_byte_level(definition.document, definition.where)
        self._strips_space = strips_space(definition.document)
        self._bytes = token_bytes(self._vocabulary, definition.added, byte_level=self._byte_level)
        self._plain = build(without_added(definition.document), definition.where)
        self._ends = definition.ends | self._well_known_ends()

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json and its companions from `folder`. Raises TokenizerError."""
        return cls(read_folder(folder))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object], where: str) -> "Tokenizer":
        """Rebuild the tokenizer of a GGUF file, called `where` in errors, from its metadata. Raises TokenizerError."""
        return cls(read_metadata(metadata, where))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers loads to encode identically."""
        write_folder(self._definition, folder)

    def encode(self, text: str, *, specials: bool = False, begin: bool = False) -> list[int]:
        """Give the ids of `text`.

        `specials` finds added tokens in it, as Hugging Face's tokenizer does; `begin` puts in front what the model's
        own tokenizer puts there, possibly nothing. Text that is not valid Unicode is a TokenizerError.
        """
        _check(text)
        backend = self._full if specials else self._plain
        return [*(self._definition.begins if begin else ()), *backend.encode(text, add_special_tokens=False).ids]

    def encode_batch(self, texts: Sequence[str], *, after: bool = False) -> list[list[int]]:
        """Give the ids of many texts, on all cores; with `after`, of texts that go on in the middle of another."""
        for text in texts:
            _check(text)
        backend = self._after if after else self._plain
        return [encoding.ids for encoding in backend.encode_batch_fast([*texts], add_special_tokens=False)]

    def encode_marked(self, text: str, marker: str) -> list[int]:
        """Give the ids of a rendered chat: added tokens are found, but not where `marker` breaks or touches them."""
        _check(text)
        ids: list[int] = []
        for piece in self._cutter.cut(text, marker):
            backend = self._after if ids else self._plain
            ids += [piece] if isinstance(piece, int) else backend.encode(piece, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_specials: bool = True) -> str:
        """Give the text of `ids`, with U+FFFD for bytes that are not UTF-8. An unknown id is a TokenizerError."""
        stream = self.stream(skip_specials=skip_specials)
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self, *, skip_specials: bool = True) -> Detokenizer:
        """Give a decoder that takes one id at a time."""
        skipped = self.special_ids if skip_specials else frozenset[int]()
        return Detokenizer(self._bytes, skipped, strip_space=self._strips_space)

    @property
    def vocabulary(self) -> int:
        """The highest id plus one."""
        return len(self._bytes)

    @property
    def bytes_by_id(self) -> Sequence[bytes | None]:
        """What each id spells, None where there is no token; an added token spells its own name."""
        return self._bytes

    def unknown_ids(self, vocabulary_size: int) -> list[int]:
        """Give the ids below the model's vocabulary that are no token; they must never be sampled."""
        return [i for i in range(vocabulary_size) if i >= len(self._bytes) or self._bytes[i] is None]

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids after which an answer is over."""
        return self._ends

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of tokens that are not text, such as `<|im_end|>`."""
        return frozenset(token.id for token in self._definition.added if token.special)

    @cached_property
    def added_ids(self) -> frozenset[int]:
        """Ids of all tokens that are found before merging: the special ones and such as `<think>`."""
        return frozenset(token.id for token in self._definition.added)

    def token_id(self, text: str) -> int | None:
        """Give the id of a token as the vocabulary spells it, or None."""
        return self._vocabulary.get(text)

    def token_text(self, token_id: int) -> str:
        """Give a token as the vocabulary spells it ("Ġthe", "<|im_end|>"). An unknown id is a TokenizerError."""
        text = self._spellings.get(token_id)
        if text is None:
            raise TokenizerError(f"no token has the id {token_id}; the vocabulary's ids go up to {self.vocabulary - 1}")
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Give what a token adds to a text; nothing where the id is no token."""
        return (self._bytes[token_id] if 0 <= token_id < len(self._bytes) else None) or b""

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the token that each id stands for: where it is equal, ids of one tokenizer are the other's too."""
        return _hash(sorted((token_id, text) for text, token_id in self._vocabulary.items()))

    @cached_property
    def rules_fingerprint(self) -> str:
        """A hash of all that decides the ids of a text."""
        return _hash([self._definition.document, self._definition.begins])

    @property
    def special_tokens(self) -> dict[str, str]:
        """The tokens that templates call bos_token, eos_token and so on."""
        return dict(self._definition.specials)

    @property
    def chat_template(self) -> str | None:
        """The source of the model's chat template, if it has one."""
        return self._definition.templates.get("default")

    @property
    def named_templates(self) -> dict[str, str]:
        """All of the model's chat templates by name ("default", "tool_use", ...)."""
        return dict(self._definition.templates)

    @cached_property
    def missing_bytes(self) -> bytes:
        """Bytes for which a byte-level vocabulary has no token; text loses them."""
        alphabet = byte_alphabet() if self._byte_level else {}
        return bytes(byte for character, byte in alphabet.items() if character not in self._vocabulary)

    @cached_property
    def strict_marking(self) -> Marking:
        """Marks strings in which no added token at all may be found."""
        return Marking((token.content for token in self._definition.added), wary=True)

    @cached_property
    def lenient_marking(self) -> Marking:
        """Marks strings in which added tokens that are not special may be found."""
        return Marking((token.content for token in self._definition.added if token.special), wary=False)

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._definition.added)

    @cached_property
    def _spellings(self) -> dict[int, str]:
        return {token_id: text for text, token_id in self._vocabulary.items()}

    @cached_property
    def _full(self) -> tokenizers.Tokenizer:
        return build(self._definition.document, self._definition.where)

    @cached_property
    def _after(self) -> tokenizers.Tokenizer:
        document = after_the_first(self._definition.document)
        if document["pre_tokenizer"] == self._definition.document.get("pre_tokenizer"):
            return self._plain
        return build(without_added(document), self._definition.where)

    def _well_known_ends(self) -> set[int]:
        found = (self._vocabulary.get(text) for text in _WELL_KNOWN_ENDS)
        return {token_id for token_id in found if token_id is not None and token_id in self.special_ids}


def _hash(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _check(text: str) -> None:
    if not isinstance(text, str):
        raise TokenizerError(f"only text can be encoded, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise TokenizerError(f"the text has half a surrogate pair, {half}, at character {error.start}; "
                             "only valid Unicode can be encoded") from None  # fmt: skip
