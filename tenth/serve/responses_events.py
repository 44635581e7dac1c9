"""The events of an answer as those of `/v1/responses`: items that begin, grow and end, and the response of them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tenth.api.answer_body import Form, Usage
from tenth.api.answer_events import Event, Finish, Logprobs, ReasoningText
from tenth.api.tool_events import ArgumentsText, CallBegin, CallEnd, ContentText
from tenth.serve.problems import HttpProblem

Json = dict[str, Any]


@dataclass(slots=True)
class ResponseEvents:
    """Builds one response. `asked` is the body: the response repeats what it was asked for."""

    form: Form
    asked: Json
    items: list[Json] = field(default_factory=list)
    status: str = "in_progress"
    _growing: bool = False  # whether the last item is a text that may go on
    _reason: str = ""
    _logprobs: list[Json] = field(default_factory=list)  # of tokens whose text is to come
    _number: int = 0

    def begin(self) -> list[Json]:
        """The first events."""
        return [self._event(name, response=self.body(None)) for name in ("response.created", "response.in_progress")]

    def take(self, event: Event) -> list[Json]:
        """The events of one event."""
        match event:
            case ReasoningText(text):
                self._logprobs.clear()
                return self._grow("reasoning", "reasoning_text", text)
            case ContentText(text):
                return self._grow("message", "output_text", text)
            case Logprobs(drawn):
                self._logprobs += [self.form.logprob(one) for one in drawn]
                return []
            case CallBegin(_, id_of_call, name):
                closed = self._close()
                self._add("function_call", "fc", {"call_id": id_of_call, "name": name, "arguments": ""})
                return [
                    *closed,
                    self._event("response.output_item.added", **self._place("output_index"), item=self._item()),
                ]
            case ArgumentsText(_, text):
                self.items[-1]["arguments"] += text
                return [self._event("response.function_call_arguments.delta", **self._place(), delta=text)]
            case CallEnd(_, whole):
                return self._end_call(whole=whole)
            case Finish(reason):
                self.status = "incomplete" if reason in ("length", "content_filter") else "completed"
                self._reason = "max_output_tokens" if reason == "length" else "content_filter"
                return self._close()

    def end(self, usage: Usage) -> Json:
        """The last event."""
        return self._event(f"response.{self.status}", response=self.body(usage))

    def failed(self, problem: HttpProblem) -> Json:
        """The last event where it broke off."""
        self.status = "failed"
        error = {"code": problem.code or problem.kind, "message": problem.message}
        return self._event("response.failed", response={**self.body(None), "error": error})

    def body(self, usage: Usage | None) -> Json:
        """The response so far."""
        asked = self.asked
        incomplete = {"reason": self._reason} if self.status == "incomplete" else None
        return {
            "id": self.form.id,
            "object": "response",
            "created_at": self.form.created,
            "status": self.status,
            "error": None,
            "incomplete_details": incomplete,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "model": self.form.model,
            "output": [dict(item) for item in self.items],
            "parallel_tool_calls": asked.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": {"effort": (asked.get("reasoning") or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": asked.get("temperature"),
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice", "auto"),
            "tools": asked.get("tools") or [],
            "top_p": asked.get("top_p"),
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "metadata": asked.get("metadata") or {},
        }

    def _grow(self, kind: str, part: str, text: str) -> list[Json]:
        """More text of an item, which begins where it is not there."""
        events = list[Json]()
        if not (self._growing and self.items[-1]["type"] == kind):
            events = self._close() + self._begin_text(kind, part)
        content = self.items[-1]["content"][0]
        content["text"] += text
        told = {"logprobs": list(self._logprobs)} if part == "output_text" else {}
        if part == "output_text":
            content["logprobs"] += self._logprobs
            self._logprobs.clear()
        place = self._place("item_id", "output_index", "content_index")
        return [*events, self._event(f"response.{part}.delta", **place, delta=text, **told)]

    def _begin_text(self, kind: str, part: str) -> list[Json]:
        more: Json = {"annotations": [], "logprobs": []} if part == "output_text" else {}
        if kind == "message":
            self._add(kind, "msg", {"role": "assistant", "content": []})
        else:
            self._add(kind, "rs", {"summary": [], "content": []})
        added = self._event("response.output_item.added", **self._place("output_index"), item=self._item())
        self.items[-1]["content"] = [{"type": part, "text": "", **more}]
        self._growing = True
        place = self._place("item_id", "output_index", "content_index")
        return [added, self._event("response.content_part.added", **place, part=dict(self.items[-1]["content"][0]))]

    def _close(self) -> list[Json]:
        """The end of a text item, if one is open."""
        if not self._growing:
            return []
        self._growing = False
        item = self.items[-1]
        item["status"] = "completed"
        (content,) = item["content"]
        place = self._place("item_id", "output_index", "content_index")
        told = {"logprobs": content["logprobs"]} if "logprobs" in content else {}
        return [
            self._event(f"response.{content['type']}.done", **place, text=content["text"], **told),
            self._event("response.content_part.done", **place, part=content),
            self._event("response.output_item.done", **self._place("output_index"), item=self._item()),
        ]

    def _end_call(self, *, whole: bool) -> list[Json]:
        item = self.items[-1]
        item["status"] = "completed" if whole else "incomplete"
        told = {"name": item["name"], "arguments": item["arguments"]}
        return [
            self._event("response.function_call_arguments.done", **self._place(), **told),
            self._event("response.output_item.done", **self._place("output_index"), item=self._item()),
        ]

    def _add(self, kind: str, prefix: str, fields: Json) -> None:
        own = self.form.id.removeprefix("resp_")
        self.items.append({"id": f"{prefix}_{own}{len(self.items)}", "type": kind, "status": "in_progress", **fields})

    def _item(self) -> Json:
        return dict(self.items[-1])

    def _place(self, *names: str) -> Json:
        """Where the last item is."""
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, "content_index": 0}
        return {name: place[name] for name in names or ("item_id", "output_index")}

    def _event(self, name: str, /, **fields: Any) -> Json:
        number, self._number = self._number, self._number + 1
        return {"type": name, "sequence_number": number, **fields}


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
