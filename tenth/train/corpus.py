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
from tenth.train.recipe import Recipe, TextOptions, source_name, stage_weights
from tenth.weights.load import Progress
from tenth.weights.tokenizer import Tokenizer

Report = Callable[[str], Progress]


class Corpus:
    """The token files of a recipe's sources, made where they are not there yet."""

    def __init__(
        self, recipe: Recipe, folder: Path, tokenizer: Tokenizer | None, vocab_size: int, report: Report
    ) -> None:
        """Text is tokenised into `folder`; RequestError where a source has nothing, or there is no tokenizer for it."""
        self._recipe, self._vocabulary = recipe, vocab_size

        def token_file(source: TextOptions) -> Path:
            return _token_file(source, tokenizer, folder, report)

        self._files = {source_name(s): token_file(s) for s in recipe.source}
        self._held_out = [token_file(s) for s in recipe.evaluation.source]
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


def _token_file(source: TextOptions, tokenizer: Tokenizer | None, folder: Path, report: Report) -> Path:
    name, path = source_name(source), Path(source.path[0])
    if source.format == "tokens" or (source.format == "auto" and path.is_file() and is_token_file(path)):
        if len(source.path) > 1:
            raise RequestError(f"source {name!r}: names {len(source.path)} token files, make each a source of its own")
        return path
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
