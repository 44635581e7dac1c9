"""Near duplicates: found where most runs of five words agree, and only there."""

from __future__ import annotations

import random
import re
import sys

import pytest

from tenth.data.duplicates import Duplicate, near_duplicates
from tenth.data.standard_library import documents
from tenth.errors import MachineError, RequestError

WORDS = re.compile(r"\w+|[^\w\s]")


def words(count: int, seed: int) -> list[str]:
    source = random.Random(seed)
    return [str(source.randrange(10_000)) for _ in range(count)]


def jaccard(a: list[str], b: list[str]) -> float:
    """Of runs of five words, stated plainly."""
    one, other = ({tuple(text[at : at + 5]) for at in range(len(text) - 4)} for text in (a, b))
    return len(one & other) / len(one | other)


def changed(text: list[str], count: int, seed: int) -> list[str]:
    source, made = random.Random(seed), [*text]
    for at in source.sample(range(len(text)), count):
        made[at] = "changed"
    return made


def test_copies_and_near_copies_are_found() -> None:
    held_out = [" ".join(words(300, seed)) for seed in range(20)]
    texts = [" ".join(words(300, seed)) for seed in range(1000, 1100)]
    texts[30] = held_out[3]
    texts[60] = held_out[7].replace(" ", "\n").upper() + "!"
    texts[61] = held_out[7]
    texts[90] = " ".join(changed(held_out[11].split(), 3, 0))
    found = near_duplicates(held_out, iter(texts))
    assert [(d.index, d.against) for d in found] == [(3, 30), (7, 61), (11, 90)]
    assert found[0].similarity == found[1].similarity == 1.0
    assert found[2].similarity == pytest.approx(jaccard(held_out[11].split(), texts[90].split()))
    assert 0.85 < found[2].similarity < 0.95


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_the_exact_similarity_decides(threshold: float) -> None:
    """Around the threshold: none below is reported, nearly all above are."""
    missed = above = 0
    for seed in range(40):
        text = words(200 if threshold < 0.6 else 400, seed)
        other = changed(text, 1 + seed % 20, seed)
        similarity = jaccard(text, other)
        found = near_duplicates([" ".join(text)], [" ".join(other)], threshold)
        if similarity < threshold:
            assert found == []
            continue
        above += 1
        missed += not found
        assert all(duplicate.similarity == pytest.approx(similarity) for duplicate in found)
    assert 5 < above < 35
    assert missed <= 1


def test_the_pairs_of_real_text_are_those_of_a_plain_search() -> None:
    stream = documents(3, 600)
    texts = [next(stream) for _ in range(240)]
    one, other = texts[:40], texts[40:]
    plain = [[jaccard(WORDS.findall(a.lower()), WORDS.findall(b.lower())) for b in other] for a in one]
    expected = {n: max(row) for n, row in enumerate(plain) if max(row) >= 0.6}
    found = near_duplicates(one, other, 0.6)
    assert {d.index: d.similarity for d in found} == pytest.approx(expected)
    assert all(plain[d.index][d.against] == pytest.approx(d.similarity) for d in found)
    assert 0 < len(found) < 20


def test_short_and_empty_texts() -> None:
    assert near_duplicates(["Hello there", "", "...", "one"], ["hello, there", "hello there", "", "one "]) == [
        Duplicate(0, 1, 1.0),
        Duplicate(3, 3, 1.0),
    ]
    assert near_duplicates([], ["a"]) == near_duplicates(["a"], []) == []


@pytest.mark.parametrize("threshold", [0, -1, 1.1, float("nan")])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(RequestError, match="the threshold is"):
        near_duplicates(["a"], ["a"], threshold)


def test_without_datasketch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MachineError, match=r"pip install 'tenth\[train\]'"):
        near_duplicates(["a"], ["a"])
