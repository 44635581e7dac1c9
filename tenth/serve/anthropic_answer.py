"""An answer in the form of Anthropic's Messages API: blocks one behind the other, whole or event by event."""

from __future__ import annotations

import json
from typing import Any

from tenth.api.answer_body import Usage
from tenth.api.answer_events import Event, Finish, Logprobs, ReasoningText
from tenth.api.tool_events import ArgumentsText, CallBegin, CallEnd, ContentText
from tenth.serve.problems import HttpProblem

Json = dict[str, Any]

SIGNATURE = "unsigned"
"""Clients want a signature with each thought. Nothing here asks for it when the thought comes back."""

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}


def anthropic_form(problem: HttpProblem) -> Json:
    """Anthropic's error object."""
    kind = _KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": problem.message}}


def usage_body(usage: Usage, *, begun: bool = False) -> Json:
    """Tokens as Anthropic counts them: those found in the cache are apart from the others of the prompt."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": 0 if begun else usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


def message_body(name: str, model: str, usage: Json) -> Json:
    """A message without content as yet."""
    return {
        "id": f"msg_{name}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


class Blocks:
    """Turns the events of an answer into those of a stream, and keeps the blocks as they grow."""

    def __init__(self) -> None:
        self.content: list[Json] = []
        self.finish: Finish | None = None
        self._open = ""  # the type of the block that is not closed
        self._input = ""

    def take(self, event: Event) -> list[Json]:
        """What an event is to the client."""
        match event:
            case ReasoningText(text):
                return self._text("thinking", text)
            case ContentText(text):
                return self._text("text", text)
            case CallBegin(_, name_of_call, name):
                self._input = ""
                return self._begin({"type": "tool_use", "id": name_of_call, "name": name, "input": {}})
            case ArgumentsText(_, text):
                self._input += text
                return [self._delta({"type": "input_json_delta", "partial_json": text})]
            case CallEnd():
                self.content[-1]["input"] = json.loads(self._input)
                return self._close()
            case Finish():
                self.finish = event
                return self._close()
            case Logprobs():
                return []

    def stop(self, usage: Usage, most: int) -> Json:
        """Why the answer ended; `most` are the tokens that it might have had, if the context had room for them."""
        assert self.finish is not None
        reason = _REASONS.get(self.finish.reason, "end_turn")
        if reason == "max_tokens" and usage.completion < most:
            reason = "model_context_window_exceeded"
        if self.finish.stopped_by is not None and reason == "end_turn":
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": self.finish.stopped_by}

    def _text(self, kind: str, text: str) -> list[Json]:
        events = []
        if self._open != kind:
            begun = {"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {})
            events = self._begin(begun)
        self.content[-1][kind] += text
        delta, name = _DELTAS[kind]
        return [*events, self._delta({"type": delta, name: text})]

    def _begin(self, block: Json) -> list[Json]:
        closed = self._close()
        self._open = block["type"]
        self.content.append(block)
        return [*closed, {"type": "content_block_start", "index": len(self.content) - 1, "content_block": dict(block)}]

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": len(self.content) - 1, "delta": delta}

    def _close(self) -> list[Json]:
        if not self._open:
            return []
        signed = []
        if self._open == "thinking":
            self.content[-1]["signature"] = SIGNATURE
            signed = [self._delta({"type": "signature_delta", "signature": SIGNATURE})]
        self._open = ""
        return [*signed, {"type": "content_block_stop", "index": len(self.content) - 1}]
