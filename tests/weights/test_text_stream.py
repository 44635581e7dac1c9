"""Stop strings: what is shown does not depend on how the text was cut, and a stop is never shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import RequestError
from tenth.weights.text_stream import TextStream
from tests.weights.vocabularies import smollm2


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """By brute force: the stop completed first, the longest if several end together."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


def pieces_to_ids(pieces: list[str]) -> list[int]:
    return [token_id for piece in pieces for token_id in smollm2().encode(piece)]


@settings(max_examples=500, deadline=None)
@given(
    pieces=st.lists(st.text("abé\n", max_size=5), max_size=8),
    stops=st.lists(st.text("abé\n", min_size=1, max_size=5), max_size=4),
)
def test_any_split(pieces: list[str], stops: list[str]) -> None:
    stream = TextStream(smollm2(), stops)
    shown = ""
    whole, stop = expected("".join(pieces), stops)
    for token_id in pieces_to_ids(pieces):
        shown += stream.push(token_id)
        assert whole.startswith(shown)
    shown += stream.finish()
    assert (shown, stream.stopped) == (whole, stop)
    assert stream.push(smollm2().encode("a")[0]) == "" or stop is None


@pytest.mark.parametrize("at", range(1, len("<stop>")))
def test_every_split_of_one_stop(at: int) -> None:
    stream = TextStream(smollm2(), ["<stop>"])
    ids = pieces_to_ids(["ok ", "<stop>"[:at], "<stop>"[at:], "never"])
    assert "".join(map(stream.push, ids)) + stream.finish() == "ok "
    assert stream.stopped == "<stop>"


def test_text_is_held_no_longer_than_needed() -> None:
    stream = TextStream(smollm2(), ["aab"])
    letters = {letter: smollm2().encode(letter)[0] for letter in "abx"}
    assert [stream.push(letters[letter]) for letter in "aaaxa"] == ["", "", "a", "aax", ""]
    assert stream.finish() == "a"


def test_without_stops_nothing_is_held() -> None:
    stream = TextStream(smollm2())
    ids = smollm2().encode("hello there")
    assert [stream.push(token_id) for token_id in ids] == [smollm2().decode([token_id]) for token_id in ids]


def test_half_a_character_is_shown_at_the_end() -> None:
    stream = TextStream(smollm2(), ["zz"])
    (first, *_) = smollm2().encode("😀")
    assert stream.push(first) == ""
    assert stream.finish() == "\ufffd"


def test_specials_are_shown_on_request() -> None:
    assert TextStream(smollm2()).push(2) == ""
    assert TextStream(smollm2(), skip_specials=False).push(2) == "<|im_end|>"


@pytest.mark.parametrize("stops", [[""], ["a", ""], "abc", [5], [None]])
def test_refused(stops: list[str]) -> None:
    with pytest.raises(RequestError, match="stop"):
        TextStream(smollm2(), stops)
