"""How far a sequence has come in its grammar, and which tokens may be next.

V vocabulary; W words of 32 bits, one bit a token: the layout of the sampler's own masks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import llguidance
import numpy as np
import torch
from torch import Tensor

from tenth.engine.grammar_vocabulary import Vocabulary, Words
from tenth.errors import RequestError


class Matcher:
    """The state of one sequence. `end_ids` may be drawn where the grammar may end, and nowhere else.

    Not for several threads at once. What a grammar asks at run time is bounded: RequestError where it is too much.
    """

    def __init__(self, library: llguidance.LLMatcher, vocabulary: Vocabulary, end_ids: Collection[int]) -> None:
        self._library, self._vocabulary = library, vocabulary
        self._end_ids = frozenset(end_ids)
        self._ends_W = vocabulary.words_of(self._end_ids)
        self._text_W = vocabulary.known_W & ~self._ends_W
        self._ended = False
        self.seconds = 0.0
        """What the last mask took."""

    def mask_W(self) -> Tensor:
        """The tokens that may be next (int32); RequestError where there is none, or the grammar is too complex."""
        if self._ended:
            raise RequestError("the grammar has ended: nothing follows an end token")
        size, start = self._vocabulary.size, time.perf_counter()
        mask_W: Words = np.zeros(size // 32 + 1, dtype=np.int32)  # one bit more than V: llguidance's own end token
        self._library.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        self._check()
        allowed_W = mask_W[: -(-size // 32)]
        allowed_W &= self._text_W
        if self.accepting:
            allowed_W |= self._ends_W
        if not allowed_W.any():
            raise RequestError("the grammar is complete and there is no end token" if self.stopped else _NOTHING)
        self.seconds = time.perf_counter() - start
        return torch.from_numpy(allowed_W)

    def take(self, token: int) -> None:
        """The next token of the sequence; RequestError for one that is not allowed, which changes nothing."""
        ends = token in self._end_ids
        if ends and not self._ended and self.accepting:
            self._ended = True
        elif ends or self._ended or not self._consume(token):
            self._check()
            raise RequestError(f"token {token} is not what the grammar allows here")

    def _consume(self, token: int) -> bool:
        return 0 <= token < self._vocabulary.size and self._library.try_consume_tokens([token]) == 1

    def fork(self) -> Matcher:
        """Another one in the same state; what happens to either does not change the other."""
        twin = Matcher.__new__(Matcher)
        twin._library, twin._vocabulary = self._library.deep_copy(), self._vocabulary
        twin._end_ids, twin._ends_W, twin._text_W = self._end_ids, self._ends_W, self._text_W
        twin._ended, twin.seconds = self._ended, self.seconds
        return twin

    def forced(self) -> list[int]:
        """Tokens that come next whatever is drawn, in the tokenizer's own cut; often none. They are not taken yet."""
        return [] if self.stopped else self._library.compute_ff_tokens()

    @property
    def accepting(self) -> bool:
        """Whether the text so far is whole: it may end here."""
        return self._ended or (not self._library.is_error() and self._library.is_accepting())

    @property
    def stopped(self) -> bool:
        """Whether the text is whole and cannot go on: only an end token may follow."""
        return self._ended or (self._library.is_stopped() and self.accepting)

    def _check(self) -> None:
        if self._library.is_error():
            raise RequestError(f"the grammar cannot go on: {one_line(self._library.get_error())}")


_NOTHING = "the grammar allows no token of this vocabulary here"


def one_line(message: str) -> str:
    """What llguidance says of an error, without the grammar that it shows."""
    short = re.sub(r"regex parse error:\n.*?\nerror: ", "", message, flags=re.DOTALL)
    lines = (line.strip() for line in re.sub(r'"[^"]{60,}" ', "", short).split("\n"))
    kept = [line for line in lines if line.strip("^") and line != "<non-verbose/>" and not _SHOWN.match(line)]
    text = " ".join(kept)
    return text if len(text) <= 300 else f"{text[:300]}..."


_SHOWN = re.compile(r"\d+ \|")  # a line of the grammar


class MaskWorker:
    """Computes masks in a thread of its own while the network runs: llguidance lets go of the interpreter.

    `prepare`, and then `masks` once; in between nobody else touches the matchers.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._job: Future[list[Tensor | RequestError]] | None = None

    def prepare(self, matchers: Sequence[Matcher]) -> None:
        """Begin with the masks of these sequences."""
        assert self._job is None, "the last masks were not fetched"
        self._job = self._pool.submit(lambda: [_mask(matcher) for matcher in matchers])

    def masks(self) -> list[Tensor | RequestError]:
        """The mask (W) of each, in order; an error is that of one sequence alone."""
        assert self._job is not None, "prepared"
        job, self._job = self._job, None
        return job.result()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)


def _mask(matcher: Matcher) -> Tensor | RequestError:
    try:
        return matcher.mask_W()
    except RequestError as error:
        return error
