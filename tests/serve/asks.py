"""Questions in the forms of all APIs, and what their answers say, whole or streamed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.serve.proving import BEGIN, mark, proof

Api = Literal["chat", "completion", "response", "message"]
PATHS: dict[Api, str] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "response": "/v1/responses",
    "message": "/v1/messages",
}
_ENDS = {"stop": "stop", "length": "length", "end_turn": "stop", "max_tokens": "length", "completed": "stop"}


@dataclass(frozen=True)
class Ask:
    """One question: its answer has `length` characters, unless `most` tokens are fewer."""

    api: Api
    nonce: str
    length: int
    most: int = 400
    n: int = 1
    stream: bool = False
    padding: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What every answer must be."""
        return proof(self.nonce, self.length)[: self.most]

    @property
    def end(self) -> str:
        """Why each ends."""
        return "length" if self.length >= self.most else "stop"

    def body(self) -> bytes:
        """As it is sent."""
        words = "x" * self.padding + mark(self.nonce, self.length)
        fields: dict[str, Any] = {"stream": self.stream, **self.more}
        message = [{"role": "user", "content": words}]
        if self.api == "completion":
            fields |= {"prompt": words[-200:] + BEGIN, "max_tokens": self.most, "n": self.n}
        elif self.api == "response":
            fields |= {"input": words, "max_output_tokens": self.most}
        elif self.api == "message":
            fields |= {"messages": message, "max_tokens": self.most}
        else:
            fields |= {"messages": message, "max_completion_tokens": self.most, "n": self.n}
        if self.stream and self.api in ("chat", "completion"):
            fields["stream_options"] = {"include_usage": True}
        return json.dumps(fields).encode()


@dataclass
class Said:
    """What an answer says: texts and ends of its choices, and tokens of prompt and answers."""

    texts: list[str]
    ends: list[str]
    prompt: int
    completion: int

    def check(self, ask: Ask) -> None:
        """AssertionError unless it answers that question, each choice once."""
        assert self.texts == [ask.text] * ask.n, f"{ask} was answered with {self.texts}"
        assert self.ends == [ask.end] * ask.n, f"{ask} ended with {self.ends}"
        drawn = ask.n * (min(ask.length, ask.most) + (ask.end == "stop"))
        assert self.completion == drawn, f"{ask} took {self.completion} tokens"


def whole(ask: Ask, body: Any) -> Said:
    """What a body says."""
    if ask.api == "message":
        usage = body["usage"]
        prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
        text = "".join(block["text"] for block in body["content"])
        return Said([text], [_ENDS[body["stop_reason"]]], prompt, usage["output_tokens"])
    if ask.api == "response":
        text = "".join(part["text"] for item in body["output"] for part in item["content"])
        end = "stop" if body["status"] == "completed" else body["incomplete_details"]["reason"]
        usage = body["usage"]
        return Said([text], [_length(end)], usage["input_tokens"], usage["output_tokens"])
    texts = [one["text"] if ask.api == "completion" else one["message"]["content"] for one in body["choices"]]
    usage = body["usage"]
    ends = [_ENDS[one["finish_reason"]] for one in body["choices"]]
    return Said(texts, ends, usage["prompt_tokens"], usage["completion_tokens"])


def streamed(ask: Ask, events: list[tuple[str, Any]]) -> Said:
    """What events say; AssertionError unless there is exactly one end, and that is last."""
    if ask.api == "message":
        return _message(events)
    if ask.api == "response":
        assert [name for name, _ in events if name in ("response.completed", "response.incomplete")] == [events[-1][0]]
        said = whole(ask, events[-1][1]["response"])
        assert "".join(data["delta"] for name, data in events if name.endswith("output_text.delta")) == said.texts[0]
        return said
    assert [number for number, (_, data) in enumerate(events) if data == "[DONE]"] == [len(events) - 1]
    assert not any("error" in data for _, data in events), events[-2:]
    texts, ends, usage = ["" for _ in range(ask.n)], Counter[int](), events[-2][1]["usage"]
    reasons = [""] * ask.n
    for _, data in events[:-2]:
        for choice in data["choices"]:
            texts[choice["index"]] += choice["text"] if ask.api == "completion" else choice["delta"].get("content", "")
            if choice["finish_reason"] is not None:
                ends[choice["index"]] += 1
                reasons[choice["index"]] = _ENDS[choice["finish_reason"]]
    assert ends == dict.fromkeys(range(ask.n), 1), ends
    return Said(texts, reasons, usage["prompt_tokens"], usage["completion_tokens"])


def _message(events: list[tuple[str, Any]]) -> Said:
    assert [number for number, (name, _) in enumerate(events) if name == "message_stop"] == [len(events) - 1]
    begun = events[0][1]["message"]["usage"]
    text = "".join(data["delta"]["text"] for name, data in events if name == "content_block_delta")
    (last,) = (data for name, data in events if name == "message_delta")
    prompt = begun["input_tokens"] + begun["cache_read_input_tokens"]
    return Said([text], [_ENDS[last["delta"]["stop_reason"]]], prompt, last["usage"]["output_tokens"])


def _length(end: str) -> str:
    return "length" if end == "max_output_tokens" else end
