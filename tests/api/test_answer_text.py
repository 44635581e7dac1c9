"""Text of an answer behind a thought that was ended: what the engine put in is none of it."""

from __future__ import annotations

from tenth.api.answer_text import AnswerText, thinking_of
from tenth.engine.thinking import QWEN3_STOP
from tests.weights.vocabularies import qwen


def test_what_ends_a_thought_is_no_text_of_the_answer() -> None:
    tokenizer = qwen()
    answer, thought = tokenizer.encode('{"a": 1}'), tokenizer.encode("Let me see", specials=True)
    thinking = thinking_of(tokenizer, tokenizer.encode("<think>", specials=True), 3, QWEN3_STOP)
    assert thinking is not None
    for put_in, behind in ((thinking.stop_ids, ""), ((thinking.close_id, *tokenizer.encode(".\n\n")), ".\n\n")):
        text = AnswerText(tokenizer, (), thinking, frozenset())
        pieces = [text.push([token]) for token in (*thought, *put_in, *answer)] + [text.finish()]
        assert "".join(piece.content for piece in pieces) == behind + '{"a": 1}'
