"""Tokens to bytes to text: what each token id spells, and a decoder that takes one id at a time.

Two ways of spelling bytes are known. Byte-level (GPT-2, Qwen, Llama-3): every byte is one printable character of a
fixed alphabet. Metaspace (Llama-2): tokens are text in which U+2581 stands for a space, and `<0xAB>` is a byte.
"""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from tenth.errors import TokenizerError
from tenth.weights.tokenizer_added import AddedToken

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_METASPACE = "\u2581"


@cache
def byte_alphabet() -> dict[str, int]:
    """Map each of the 256 characters of the byte-level alphabet to its byte (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(256 + n): byte for n, byte in enumerate(others)}


def token_bytes(vocabulary: Mapping[str, int], added: Iterable[AddedToken], *, byte_level: bool) -> list[bytes | None]:
    """Give the bytes of each id, None where there is no token. An added token spells its own text."""
    spell = _byte_level_bytes if byte_level else _metaspace_bytes
    own = {token.id: token.content.encode() for token in added}
    table: list[bytes | None] = [None] * (max([*vocabulary.values(), *own], default=-1) + 1)
    for text, token_id in vocabulary.items():
        table[token_id] = spell(text)
    for token_id, content in own.items():
        table[token_id] = content
    return table


def _byte_level_bytes(text: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[character] for character in text])
    except KeyError:  # a token outside the alphabet stands for itself
        return text.encode()


def _metaspace_bytes(text: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(_METASPACE, " ").encode()


class Detokenizer:
    """Turns ids into text one at a time, in constant time each, and never gives half a character.

    Bytes that are not UTF-8 become U+FFFD just as in a decode of the whole, so the pieces always join to that decode.
    """

    def __init__(self, table: Sequence[bytes | None], skipped: frozenset[int], *, strip_space: bool):
        self._table = table
        self._skipped = skipped
        self._strip_space = strip_space  # the space that the tokenizer itself puts before a text
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Give the text that `token_id` completes, possibly none. An unknown id is a TokenizerError."""
        spelled = self._table[token_id] if 0 <= token_id < len(self._table) else None
        if spelled is None:
            raise TokenizerError(
                f"no token has the id {token_id}; the vocabulary's ids go up to {len(self._table) - 1}"
            )
        if token_id in self._skipped:
            return ""
        if self._strip_space and spelled:
            self._strip_space = False
            spelled = spelled.removeprefix(b" ")
        return self._decoder.decode(spelled)

    def finish(self) -> str:
        """Give what is left: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)
