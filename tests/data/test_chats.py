"""Chats as training text: the model's template makes their tokens, and errors name file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenth.data.readers import TextSource
from tenth.data.token_file import TokenFile
from tenth.data.tokenize import TokenizeOptions, held_out_path, tokenize, tokenize_cached
from tenth.errors import FileFormatError, RequestError, TenthError, TokenizerError
from tests.api.tiny import tiny_tokenizer

USER, SAID = {"role": "user", "content": "Hi <|im_end|>"}, {"role": "assistant", "content": "Ho ☃"}
STRICT = "{% for message in messages %}{{ message.content + '' }}{% endfor %}{{ raise_exception('no such chat') }}"


def lines(path: Path, *records: object) -> TextSource:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return TextSource(str(path), format="chat")


def test_control_tokens_are_the_templates_alone(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    source = lines(tmp_path / "a.jsonl", {"messages": [USER, SAID], "more": 1}, {"messages": [USER]})
    tally = tokenize([source], tokenizer, tmp_path / "a.tokens")
    found = TokenFile(tmp_path / "a.tokens")
    assert (tally.documents, tally.text_bytes) == (2, len("Hi <|im_end|>\nHo ☃".encode()) + len("Hi <|im_end|>"))
    first = found.document(0).tolist()
    text = "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\nHo ☃<|im_end|>\n<|endoftext|>"
    assert tokenizer.decode(first, skip_specials=False) == text
    assert (first.count(257), first.count(258), first[-1]) == (2, 2, 256)


def test_chats_are_held_out_by_what_they_say(tmp_path: Path) -> None:
    chats = [{"messages": [{"role": "user", "content": f"chat {n % 100}"}]} for n in range(200)]
    source = lines(tmp_path / "a.jsonl", *chats)
    tokenize([source], tiny_tokenizer(tmp_path), tmp_path / "a.tokens", TokenizeOptions(hold_out=0.3))
    kept, held = (
        [tuple(file.document(n).tolist()) for n in range(file.documents)]
        for file in (TokenFile(tmp_path / "a.tokens"), TokenFile(held_out_path(tmp_path / "a.tokens")))
    )
    assert len(kept) + len(held) == 200
    assert 30 < len(held) < 90
    assert not set(kept) & set(held)


def test_another_template_makes_other_tokens(tmp_path: Path) -> None:
    """The files and the vocabulary are the same: the cache must look at the template too."""
    source = lines(tmp_path / "a.jsonl", {"messages": [USER]})
    one = tokenize_cached([source], tiny_tokenizer(tmp_path), tmp_path)
    short = "{% for message in messages %}{{ message.content }}{% endfor %}"
    two = tokenize_cached([source], tiny_tokenizer(tmp_path, short), tmp_path)
    assert one != two
    assert len(TokenFile(two).document(0)) < len(TokenFile(one).document(0))


@pytest.mark.parametrize(
    ("record", "template", "kind", "complaint"),
    [
        ({"text": "x"}, None, FileFormatError, r"a\.jsonl:2: has no key 'messages'; its keys are: text"),
        ({"messages": []}, None, FileFormatError, r"a\.jsonl:2: messages must be a list of at least one"),
        ({"messages": [{"role": "user"}]}, None, FileFormatError, r"a\.jsonl:2: messages\[0\]\.content must be"),
        ({"messages": [USER], "tools": 3}, None, FileFormatError, r"a\.jsonl:2: tools must be a list"),
        (
            {"messages": [{"role": "user", "content": "\ud800"}]},
            None,
            FileFormatError,
            r"a\.jsonl:2: 'content' has half a surrogate pair at character 0",
        ),
        ({"messages": [USER]}, STRICT, FileFormatError, r"a\.jsonl:1: .*no such chat"),
        ({"messages": [USER]}, "", TokenizerError, r"a\.jsonl:1: is a chat, and the tokenizer has no chat template"),
    ],
)
def test_chats_that_are_none(
    tmp_path: Path, record: Any, template: str | None, kind: type[TenthError], complaint: str
) -> None:
    source = lines(tmp_path / "a.jsonl", {"messages": [USER, SAID]}, record)
    tokenizer = tiny_tokenizer(tmp_path) if template is None else tiny_tokenizer(tmp_path, template or None)
    with pytest.raises(kind, match=complaint):
        tokenize([source], tokenizer, tmp_path / "a.tokens")
    assert not (tmp_path / "a.tokens").exists()


def test_a_chat_has_no_text_key(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the format chat takes no text key"):
        TextSource(str(tmp_path), format="chat", text_key="body")
