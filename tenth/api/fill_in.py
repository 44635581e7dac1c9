"""Fill-in-the-middle: what stands before and behind a gap becomes a prompt, with the model's own tokens for it.

The form is that of Qwen's coders, `<|fim_prefix|>before<|fim_suffix|>behind<|fim_middle|>`, and with other files of the
repository ahead of it, `<|repo_name|>name\\n<|file_sep|>path\\ntext...`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenth.errors import RequestError
from tenth.weights.tokenizer import Tokenizer

_TAGS = (  # before, behind, the gap; the same order in all of them
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
)
_FILES = (("<|repo_name|>", "<|file_sep|>"), ("<repo_name>", "<file_sep>"))
_PADS = ("<|fim_pad|>", "<fim_pad>")


@dataclass(frozen=True, slots=True)
class OtherFile:
    """A file that is shown ahead of the gap."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Gap:
    """The prompt of a gap, and tokens behind which what is filled in has ended."""

    ids: tuple[int, ...]
    end_ids: frozenset[int]


def gap_prompt(
    tokenizer: Tokenizer, before: str, behind: str, begun: str = "", others: Sequence[OtherFile] = ()
) -> Gap:
    """What the model reads; `begun` is how the filling begins. RequestError where its vocabulary has no such tokens.

    Files of the repository are left out where there are no tokens for them.
    """
    tags = next((found for names in _TAGS if (found := _known(tokenizer, names))), None)
    if tags is None:
        raise RequestError("suffix: the model has no tokens for fill-in-the-middle, such as <|fim_prefix|>")
    first, second, third = tags
    files = next((found for names in _FILES if (found := _known(tokenizer, names))), ())
    ids = [*_shown(tokenizer, files, others), first, *tokenizer.encode(before), second]
    ids += [*tokenizer.encode(behind), third, *tokenizer.encode(begun)]
    pads = [token for name in _PADS if (token := tokenizer.token_id(name)) is not None]
    return Gap(tuple(ids), frozenset([*tags, *files, *pads]))


def _known(tokenizer: Tokenizer, names: Sequence[str]) -> tuple[int, ...]:
    """Their ids, nothing unless all are added tokens."""
    ids = [tokenizer.token_id(name) for name in names]
    return tuple(token for token in ids if token in tokenizer.added_ids) if set(ids) <= tokenizer.added_ids else ()


def _shown(tokenizer: Tokenizer, files: tuple[int, ...], others: Sequence[OtherFile]) -> list[int]:
    if not files or not others:
        return []
    repository, separator = files
    ids = [repository, *tokenizer.encode("repository\n")]
    for other in others:
        ids += [separator, *tokenizer.encode(f"{other.name}\n{other.text}\n")]
    return [*ids, separator, *tokenizer.encode("current\n")]
