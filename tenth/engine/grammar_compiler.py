"""From a grammar's text to states that follow tokens: compiled once, kept, and refused where it asks for too much."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future

import llguidance

from tenth.engine.grammar import Grammar
from tenth.engine.grammar_matcher import Matcher, one_line
from tenth.engine.grammar_trial import try_grammar
from tenth.engine.grammar_vocabulary import Vocabulary
from tenth.engine.grammar_worker import GrammarLimits, compile_grammar
from tenth.errors import RequestError

_KEPT = 256


class GrammarCompiler:
    """The grammars of one vocabulary; for any number of threads.

    What a user wrote is compiled in a process of its own first (about 0.1 s), which limits time and memory and may
    crash. Requests with equal grammars share one compilation, also while it goes on.
    """

    def __init__(self, vocabulary: Vocabulary, limits: GrammarLimits | None = None, kept: int = _KEPT) -> None:
        self.vocabulary, self.limits = vocabulary, limits or GrammarLimits()
        self._kept, self._lock = kept, threading.Lock()
        self._compiled: OrderedDict[Grammar, Future[llguidance.LLMatcher]] = OrderedDict()

    def compile(self, grammar: Grammar) -> None:
        """Make `start` quick for this grammar; RequestError, in one line, where it cannot be used."""
        self._prototype(grammar)

    def start(self, grammar: Grammar, end_ids: Collection[int] = ()) -> Matcher:
        """The beginning of a text of this grammar. RequestError as above, or for an end token that there is not."""
        return Matcher(self._prototype(grammar).deep_copy(), self.vocabulary, end_ids)

    def _prototype(self, grammar: Grammar) -> llguidance.LLMatcher:
        with self._lock:
            known = self._compiled.get(grammar)
            made = known or self._compiled.setdefault(grammar, Future())
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > self._kept:
                self._compiled.popitem(last=False)
        if known is None:
            self._fulfil(grammar, made)
        return made.result()

    def _fulfil(self, grammar: Grammar, made: Future[llguidance.LLMatcher]) -> None:
        """Compile it for all who wait; what failed is not kept, for the machine may have been busy."""
        try:
            made.set_result(self._make(grammar))
        except BaseException as error:
            with self._lock:
                if self._compiled.get(grammar) is made:
                    del self._compiled[grammar]
            made.set_exception(error)

    def _make(self, grammar: Grammar) -> llguidance.LLMatcher:
        language, text = grammar.source()
        if not grammar.ours:
            try_grammar(language, text, self.vocabulary.special_names, self.limits)
        matcher, error = compile_grammar(self.vocabulary.library, language, text, self.limits)
        if error:
            raise RequestError(f"{grammar.kind} grammar: {one_line(error)}")
        return matcher
