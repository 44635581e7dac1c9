"""The text of a recipe: rows to learn from, stage by stage, and rows that are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tenth.data.loader import Loader, samples
from tenth.data.mixture import Source
from tenth.data.packing import NO_DOMAIN, Sample
from tenth.data.readers import TextSource
from tenth.data.token_file import TokenFile, is_token_file
from tenth.data.tokenize import tokenize_cached
from tenth.errors import RequestError
from tenth.train.recipe import Recipe, TextOptions, refuse_unheeded, source_name, stage_weights
from tenth.weights.load import Progress
from tenth.weights.tokenizer import Tokenizer

Report = Callable[[str], Progress]


class Corpus:
    """The token files of a recipe's sources, made where they are not there yet."""

    def __init__(
        self, recipe: Recipe, folder: Path, tokenizer: Tokenizer | None, vocab_size: int, report: Report
    ) -> None:
        """Text is tokenised into `folder`.

        RequestError where a source has nothing, where there is no tokenizer for it, or where its tokens are others than
        the model's.
        """
        self._recipe, self._vocabulary = recipe, vocab_size
        _check_names(recipe.evaluation.source)

        def token_file(source: TextOptions, names: tuple[str, ...]) -> Path:
            if not _holds_tokens(source):
                return _tokenised(source, tokenizer, folder, report)
            path = _given(source, names)
            TokenFile(path).check_made_for(vocab_size, None if tokenizer is None else tokenizer.fingerprint)
            return path

        text_alone = ("text_key", "domain_key", "domain")
        self._files = {source_name(s): token_file(s, text_alone) for s in recipe.source}
        # what domains of held-out text are called is in the file
        self._held_out = [token_file(s, ("name", *text_alone)) for s in recipe.evaluation.source]
        self._cached: dict[int, tuple[list[Sample], list[str]]] = {}
        for stage in range(len(recipe.stage)):  # sources that do not fit are refused before the first step
            self.loader(stage)

    def loader(self, stage: int) -> Loader:
        """The rows of a stage, from its first one."""
        options = self._recipe.stage[stage]
        weights = stage_weights(options, self._recipe.source)
        sources = [Source(self._files[name], weight, name) for name, weight in weights.items()]
        return Loader(sources, options.length, self._recipe.run.seed * 1_000 + stage, self._vocabulary)

    def held_out(self, length: int) -> tuple[list[Sample], list[str]]:
        """Rows of all held-out sources, and the names of their domains; made once for each length."""
        if length not in self._cached:
            rows: list[Sample] = []
            names: list[str] = []
            for path in self._held_out:
                limit = max(self._recipe.evaluation.tokens // length, 1)
                numbers = [_number(name, names) for name in TokenFile(path).domains]
                rows += [_renumbered(sample, numbers) for sample in samples(path, length, limit)]
            self._cached[length] = rows, names
        return self._cached[length]

    def probe(self, tokens: int, length: int) -> list[Sample]:
        """Rows of at most so many tokens together, as much of each held-out source; else of the text of stage 0."""
        if not self._held_out:
            loader = self.loader(0)
            return [loader.next() for _ in range(tokens // length)]
        share = max(tokens // len(self._held_out), 2)
        row = min(length, share)
        paths = self._held_out[: tokens // share]
        return [sample for path in paths for sample in samples(path, row, share // row)]


def _check_names(sources: Sequence[TextOptions]) -> None:
    """Two sources of held-out text whose name is their domain's would be taken for one."""
    names = [source_name(s) for s in sources if not (s.domain or s.domain_key or _holds_tokens(s))]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two sources of held-out text are called {name!r}: give each a name of its own")


def _holds_tokens(source: TextOptions) -> bool:
    path = Path(source.path[0])
    return source.format == "tokens" or (source.format == "auto" and path.is_file() and is_token_file(path))


def _given(source: TextOptions, unheeded: Sequence[str]) -> Path:
    """The one token file that a source is; what would say how to read text is refused."""
    name = source_name(source)
    if len(source.path) > 1:
        raise RequestError(f"source {name!r}: names {len(source.path)} token files, make each a source of its own")
    try:
        refuse_unheeded(source, unheeded, "where text is read, and this is a token file")
    except RequestError as error:
        raise RequestError(f"source {name!r}: {error}") from None
    return Path(source.path[0])


def _tokenised(source: TextOptions, tokenizer: Tokenizer | None, folder: Path, report: Report) -> Path:
    name = source_name(source)
    assert source.format != "tokens", "looked at before"
    if tokenizer is None:
        raise RequestError(f"source {name!r}: is text, which needs a tokenizer: set model.tokenizer")
    texts = [
        TextSource(path, name, source.text_key, source.domain or None, source.domain_key or None, source.format)
        for path in source.path
    ]
    return tokenize_cached(texts, tokenizer, folder, progress=report(f"tokenising {name}"))


def _number(name: str, names: list[str]) -> int:
    if name not in names:
        names.append(name)
    return names.index(name)


def _renumbered(sample: Sample, numbers: Sequence[int]) -> Sample:
    domains = tuple(domain if domain == NO_DOMAIN else numbers[domain] for domain in sample.domains)
    return replace(sample, domains=domains)
