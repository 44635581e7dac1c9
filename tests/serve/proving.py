"""A model whose answers prove their own prompts, however many there are: nothing is remembered of any of them.

A prompt names its answer as `#NONCE:LENGTH#`; the answer begins behind the sign 0x01, which the template writes, or the
prompt of a completion. A token is a byte.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tenth.api import Model
from tenth.engine.scripted import Script, ScriptedModel
from tenth.weights.generation import GenerationDefaults
from tests.api.tiny import tiny_tokenizer

BEGIN = "\x01"
VOCABULARY, END = 512, 258
_SHOWN = 200  # characters of a message that the model sees: bodies may be large while prompts are not
TEMPLATE = (
    "<|im_start|>Answers are proved by their numbers.\n{% for message in messages %}<|im_start|>{{ message.role }}\n"
    f"{{{{ message.content[-{_SHOWN}:] }}}}<|im_end|>\n{{% endfor %}}<|im_start|>assistant\n{BEGIN}"
)


@lru_cache(512)
def proof(nonce: str, length: int) -> str:
    """The text that answers a prompt with this mark, of so many characters."""
    words = [nonce]
    while sum(map(len, words)) + len(words) <= length:
        words.append(hashlib.sha256(f"{nonce} {len(words)}".encode()).hexdigest()[:7])
    return " ".join(words)[:length]


def mark(nonce: str, length: int) -> str:
    """What a prompt has in it."""
    return f"#{nonce}:{length}#"


def proving_model(folder: Path, *, context: int = 2048) -> Model:
    """The model; its tokenizer's files come to lie in the folder."""
    tokenizer = tiny_tokenizer(folder, TEMPLATE)
    ids = {letter: tokenizer.encode(letter)[0] for letter in map(chr, range(128))}
    letters = {number: letter for letter, number in ids.items()}
    decoder: Any = ScriptedModel(VOCABULARY, [_script(ids, letters)], END, margin=40.0, context_length=context)
    return Model(decoder, tokenizer, generation=GenerationDefaults(temperature=0.0), identity="proving")


def _script(ids: dict[str, int], letters: dict[int, str]) -> Script:
    begin = ids[BEGIN]

    def script(seen: Sequence[int]) -> int | None:
        if begin not in seen:
            return None
        at = seen.index(begin)
        prompt = "".join(letters.get(number, "?") for number in seen[max(0, at - _SHOWN) : at])
        marks = re.findall(r"#(\w+):(\d+)#", prompt)
        answer = proof(marks[-1][0], int(marks[-1][1])) if marks else "no mark"
        said = len(seen) - at - 1
        if said >= len(answer) or any(
            letters.get(one) != two for one, two in zip(seen[at + 1 :], answer, strict=False)
        ):
            return None
        return ids[answer[said]]

    return script
