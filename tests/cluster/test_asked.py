"""What decides where a request goes: the text that the model is shown first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tenth.cluster.asked import beginning
from tenth.cluster.on_ray import Scale
from tenth.cluster.scaling import replicas_for
from tenth.engine.prefix import shared_length
from tenth.errors import RequestError


def text(**body: Any) -> bytes:
    return beginning(json.dumps(body).encode())


def test_a_conversation_begins_as_its_earlier_turns_did() -> None:
    first = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "Why?" * 50}]
    more = [*first, {"role": "assistant", "content": "Because."}, {"role": "user", "content": "And?"}]
    one, two = text(temperature=1, messages=first), text(messages=more, model="x", max_tokens=5)
    assert shared_length(one, two) >= len(one) - 1


def test_tools_and_system_stand_ahead_of_messages() -> None:
    found = text(messages=[{"role": "user", "content": "m"}], system="s", tools=[{"name": "t"}])
    assert found.index(b'"t"') < found.index(b'"s"') < found.index(b'"m"')


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b"\xff\xfe{}", b"[" * 100_000, b'{"messages": null}'])
def test_what_is_no_prompt_has_no_text(body: bytes) -> None:
    assert beginning(body) == b""


def test_half_a_surrogate_pair_is_text_too() -> None:
    assert beginning(b'{"prompt": "\\ud800"}') == b'"\xed\xa0\x80"'


def test_token_ids_are_a_text() -> None:
    assert text(prompt=[1, 2, 3]) == b"[1, 2, 3]"


def test_how_many_replicas() -> None:
    assert Scale.parse("2", 1, 0) == Scale(2, 2, 1, 0)
    assert Scale.parse("1:4", 2, 0.5) == Scale(1, 4, 2, 0.5)
    for wrong in ("0", "4:1", "x", "1:", "1:2:3", "-1", "1:100000", ""):
        with pytest.raises(RequestError, match="--replicas is"):
            Scale.parse(wrong, 1, 0)


def test_so_many_replicas_that_each_has_its_share() -> None:
    assert replicas_for([10, 15], 8, 2) == 4
    assert replicas_for([0, 0], 8, 2) == 0  # Serve's lower bound stands
    assert replicas_for([], 8, 3) == 3
