"""Structured output of whole models at temperature 1: a trained one, and one of random weights.

Answers that the limit of tokens cuts are no documents; they are counted, and printed (`-rP`, or `-s`).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from itertools import count

import pytest

import tenth
from tenth.api import Model, resolve
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.grammar import Grammar
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.quantize.nearest import quantize
from tenth.quantize.policy import Policy
from tenth.weights.checkpoint import open_checkpoint
from tests.api.tiny import tiny_model
from tests.engine.grammar_judge import REAL_SCHEMAS, check_document, real_schema

TASKS = [
    "reads a CSV file and sums a column",
    "finds prime numbers",
    "sorts a list of words by length",
    "is a class for a stack",
    "retries a function that raises",
    "parses command line arguments",
    "walks a folder of files",
    "counts words with a dict",
    "defines an async queue worker",
    "formats a table with f-strings",
]


class Sampled:
    """A model and an engine of it; `bias` makes the first tokens of texts likelier."""

    def __init__(self, model: Model, bias: Mapping[str, float]) -> None:
        self.model = model
        self.engine: Engine = model.engine(EngineOptions(640))
        self.bias = {model.tokenizer.encode(text)[0]: value for text, value in bias.items()}

    def texts(self, grammar: Grammar, asked: str, number: int, most: int, first: int = 0) -> tuple[list[str], int]:
        """So many texts that came to their end, fewer where the limit cuts most of them, and how many it cut."""
        prompt, whole, cut, seeds = (
            self.model.encode([{"role": "user", "content": asked}]),
            list[str](),
            0,
            count(first),
        )
        while len(whole) < number and cut <= 3 * number:
            requests = [
                Request(
                    tuple(prompt),
                    most,
                    Sampling(seed=next(seeds)),
                    self.model.end_ids,
                    logit_bias=self.bias,
                    grammar=grammar,
                )
                for _ in range(number - len(whole))
            ]
            streams = [self.engine.submit(request) for request in requests]
            while self.engine.busy:
                self.engine.step()
            for answer in (stream.answers[0] for stream in streams):
                assert answer.finish_reason in ("stop", "length"), answer.error
                if answer.finish_reason == "stop":
                    whole.append(self._spelled(answer.tokens))
                else:
                    cut += 1
        assert whole, f"none of {cut} texts came to an end"
        return whole, cut

    def _spelled(self, tokens: list[int]) -> str:
        table = self.model.tokenizer.bytes_by_id
        return b"".join(table[token] or b"" for token in tokens if token not in self.model.end_ids).decode()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    """The default model in 8 bits, which is many times as fast as the reference."""
    folder = tmp_path_factory.mktemp("default") / "packed"
    with open_checkpoint(resolve("default")) as checkpoint:
        quantize(checkpoint, folder, Policy(8))
    return Sampled(tenth.load(folder), {})


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    """Tokens are bytes; what ends a text or a list is made likelier, or texts would hardly end."""
    model = tiny_model(tmp_path_factory.mktemp("tiny"), context=4096)
    return Sampled(model, {'"': 3.0, "}": 2.0, "]": 2.0, "\n": -3.0})


def judge(sampled: Sampled, name: str, number: int, most: int) -> None:
    schema = real_schema(name)
    texts, cut = sampled.texts(Grammar.json_schema(schema), f"Write {schema['title']} as JSON.", number, most)
    for text in texts:
        check_document(schema, text)
    print(
        f"{name}: {len(texts)} documents valid, {cut} cut; {sum(map(len, texts)) // len(texts)} characters on average"
    )


def test_there_are_twenty_schemas() -> None:
    assert len(REAL_SCHEMAS) == 20


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_SCHEMAS)
def test_a_thousand_documents_of_the_default_model_are_valid(trained: Sampled, name: str) -> None:
    judge(trained, name, 50, 500)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL_SCHEMAS)
def test_documents_of_random_weights_are_valid(random_weights: Sampled, name: str) -> None:
    judge(random_weights, name, 10, 300)


@pytest.mark.slow
@pytest.mark.parametrize("task", range(len(TASKS)))
def test_a_thousand_programs_of_the_default_model_are_python(trained: Sampled, task: int) -> None:
    asked = f"Write a Python program that {TASKS[task]}. Only the code."
    texts, cut = trained.texts(Grammar.python(), asked, 100, 250, first=1000 * task)
    for text in texts:
        ast.parse(text)
    print(f"{TASKS[task]}: {len(texts)} programs parsed, {cut} cut; {sum(map(len, texts)) // len(texts)} characters")
