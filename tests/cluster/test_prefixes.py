"""What a replica has seen, against a plain count over all texts it was given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tenth.cluster.prefixes import BLOCK, SeenPrefixes, digests
from tenth.engine.prefix import shared_length

TEXTS = st.lists(st.lists(st.sampled_from([b"a" * BLOCK, b"b" * BLOCK, b"c"]), max_size=5).map(b"".join), max_size=6)


@given(TEXTS, st.lists(st.sampled_from([b"a" * BLOCK, b"b" * BLOCK, b"c" * 7]), max_size=6).map(b"".join))
def test_matched_is_the_longest_common_beginning_in_blocks(before: list[bytes], text: bytes) -> None:
    seen = SeenPrefixes(1000)
    for one in before:
        seen.add(digests(one, "alice"))
    whole = [one[: len(one) // BLOCK * BLOCK] for one in before]
    longest = max((shared_length(one, text) // BLOCK * BLOCK for one in whole), default=0)
    assert seen.matched(digests(text, "alice")) == longest
    assert seen.matched(digests(text, "bob")) == 0 or not text


def test_the_oldest_go_first_and_of_a_text_its_end() -> None:
    seen, old, new = SeenPrefixes(5), digests(b"o" * 4 * BLOCK, ""), digests(b"n" * 3 * BLOCK, "")
    seen.add(old)
    seen.add(new)
    assert (len(seen), seen.matched(old), seen.matched(new)) == (5, 2 * BLOCK, 3 * BLOCK)


def test_a_text_is_looked_at_up_to_its_last_whole_block() -> None:
    assert len(digests(b"x" * (3 * BLOCK + 5), "")) == 3
    assert len(digests(b"x" * (1 << 20), "")) == (256 << 10) // BLOCK
    assert digests(b"", "") == []
