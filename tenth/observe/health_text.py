"""The text that a model's health is judged on: files that were named, or what every Python installation has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tenth.data.standard_library import documents
from tenth.errors import RequestError
from tenth.observe.corpora import Ids, TextIds, WatchedText, check_ids
from tenth.observe.profiling import Part
from tenth.routing.profile import BLOCKS

TOKENS, CONTEXT = 8192, 512


def library_parts(ids_of: TextIds, tokens: int = TOKENS) -> list[Part]:
    """Passages of the language reference and of the standard library's modules, half of the tokens each."""
    left, found = Counter({"prose": tokens - tokens // 2, "code": tokens // 2}), list[Part]()
    for number, text in enumerate(documents(0)):
        domain = ("prose", "code")[number % 2]
        ids = ids_of.text(text)[: min(CONTEXT, left[domain])]
        left[domain] -= len(ids)
        if ids:
            found.append(Part(ids, domain, number // 2 % BLOCKS))
        if not left.total():
            return found
    raise AssertionError("passages have no end")


def corpus_parts(sources: Sequence[str], ids_of: TextIds, vocabulary: int, tokens: int = TOKENS) -> list[Part]:
    """The beginnings of files' documents, as many tokens of each domain. RequestError where there is no text."""
    text, found = WatchedText(sources), list[Part]()
    domains = {source.default_domain for source in text.sources}
    left = Counter(dict.fromkeys(domains, -(-tokens // len(domains))))
    for number, (domain, ids) in enumerate(_documents(text, ids_of, vocabulary, left)):
        shown = ids[: left[domain]]
        left[domain] -= len(shown)
        found += [Part(shown[at : at + CONTEXT], domain, number % BLOCKS) for at in range(0, len(shown), CONTEXT)]
        if not left.total():
            break
    if not found:
        raise RequestError(f"{', '.join(sources)}: has no text: there is nothing to judge by")
    return found


def _documents(text: WatchedText, ids_of: TextIds, vocabulary: int, left: Counter[str]) -> Iterator[tuple[str, Ids]]:
    """Documents of domains that tokens are left of, with their ids."""
    for document in text.documents(ids_of, vocabulary):
        if left[document.domain]:
            ids = document.ids()
            check_ids(ids, vocabulary, document.where)
            if ids:
                yield document.domain, ids
