"""What `/openapi.json` says of bodies. They are judged by the code that reads them, not by this."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer"}
_NUMBER: Json = {"type": "number"}
_FLAG: Json = {"type": "boolean"}
_OBJECT: Json = {"type": "object"}
_IDS: Json = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_PARTS: Json = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"type": {"const": "text"}, "text": _TEXT},
        "required": ["type", "text"],
    },
}
_MESSAGE: Json = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, _PARTS, {"type": "null"}]},
        "reasoning_content": _TEXT,
        "tool_calls": {"type": "array", "items": _OBJECT},
        "tool_call_id": _TEXT,
    },
    "required": ["role"],
}
_MESSAGES: Json = {"type": "array", "items": _MESSAGE, "minItems": 1}
_TOOL: Json = {
    "type": "object",
    "properties": {"type": {"const": "function"}, "function": {"type": "object", "required": ["name"]}},
    "required": ["type", "function"],
}
_PROMPT: Json = {"anyOf": [_TEXT, _IDS, {"type": "array", "items": _TEXT}, {"type": "array", "items": _IDS}]}


def _within(kind: str, low: float, high: float) -> Json:
    return {"type": kind, "minimum": low, "maximum": high}


_SAMPLED: Json = {
    "model": _TEXT,
    "max_tokens": {"type": "integer", "minimum": 1},
    "min_tokens": {"type": "integer", "minimum": 0},
    "temperature": _within("number", 0, 100),
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"type": "integer", "minimum": 0},
    "min_p": _within("number", 0, 1),
    "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
    "presence_penalty": _within("number", -100, 100),
    "frequency_penalty": _within("number", -100, 100),
    "seed": {"type": "integer", "minimum": 0},
    "expert_mass": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "max_experts": {"type": "integer", "minimum": 1},
    "n": _within("integer", 1, 128),
    "stop": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    "stop_token_ids": _IDS,
    "ignore_eos": _FLAG,
    "logit_bias": {"type": "object", "additionalProperties": _within("number", -100, 100)},
    "stream": _FLAG,
    "stream_options": {"type": "object", "properties": {"include_usage": _FLAG}},
    "response_format": {"type": "object", "properties": {"type": _TEXT}, "required": ["type"]},
    "structured_outputs": _OBJECT,
    "thinking_token_budget": {"type": "integer", "minimum": 0},
    "reasoning_effort": {"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"]},
    "include_reasoning": _FLAG,
    "priority": _WHOLE,
    "cache": _FLAG,
    "user": _TEXT,
}
_BODIES: dict[str, tuple[Json, list[str]]] = {
    "chat": (
        {
            "messages": _MESSAGES,
            **_SAMPLED,
            "max_completion_tokens": {"type": "integer", "minimum": 1},
            "logprobs": _FLAG,
            "top_logprobs": _within("integer", 0, 64),
            "tools": {"type": "array", "items": _TOOL},
            "enable_thinking": _FLAG,
            "chat_template_kwargs": _OBJECT,
        },
        ["messages"],
    ),
    "completion": (
        {"prompt": _PROMPT, **_SAMPLED, "suffix": _TEXT, "echo": _FLAG, "logprobs": _within("integer", 0, 64)},
        ["prompt"],
    ),
    "infill": (
        {
            "input_prefix": _TEXT,
            "input_suffix": _TEXT,
            "input_extra": {"type": "array", "items": _OBJECT},
            "prompt": _TEXT,
            "n_predict": _WHOLE,
            "temperature": _NUMBER,
            "stream": _FLAG,
        },
        ["input_prefix", "input_suffix"],
    ),
    "responses": (
        {
            "model": _TEXT,
            "input": {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT, "minItems": 1}]},
            "instructions": _TEXT,
            "max_output_tokens": {"type": "integer", "minimum": 1},
            "temperature": _within("number", 0, 100),
            "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "stream": _FLAG,
            "reasoning": _OBJECT,
            "text": _OBJECT,
            "tools": {"type": "array", "items": _OBJECT},
        },
        ["input"],
    ),
    "embeddings": (
        {
            "model": _TEXT,
            "input": _PROMPT,
            "encoding_format": {"enum": ["float", "base64"]},
            "pooling": {"enum": ["last", "mean"]},
        },
        ["input"],
    ),
    "tokenize": ({"prompt": _TEXT, "messages": _MESSAGES, "add_special_tokens": _FLAG, "return_token_strs": _FLAG}, []),
    "detokenize": ({"tokens": _IDS}, ["tokens"]),
}
_DECISIONS = ["approve", "correct", "reject"]
_BODIES |= {
    "flag": (
        {"messages": _MESSAGES, "answer": _TEXT, "reasoning": _TEXT, "model": _TEXT, "note": _TEXT},
        ["messages", "answer"],
    ),
    "decision": (
        {"decision": {"enum": _DECISIONS}, "correction": _TEXT, "note": _TEXT, "seen": _WHOLE},
        ["decision"],
    ),
}
_QUERIES: dict[str, dict[str, Json]] = {
    "reviews": {"state": _TEXT, "limit": _within("integer", 1, 200), "after": _TEXT},
    "reviews_export": {"state": _TEXT},
    "review": {},
}
_ERROR: Json = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
_REFUSALS = {400: "The body cannot be served.", 404: "No such model, or review.", 413: "Too large.", 415: "Not JSON."}
_BUSY = {429: "The server is full.", 503: "The model is not ready, or the server is stopping."}


def described(name: str) -> dict[str, Any]:
    """For a route: what its body or its query is, and how it refuses."""
    errors = {"application/json": {"schema": _ERROR}}
    answers = {code: {"description": words, "content": errors} for code, words in (_REFUSALS | _BUSY).items()}
    if name in _QUERIES:
        query = [{"name": one, "in": "query", "schema": schema} for one, schema in _QUERIES[name].items()]
        return {"openapi_extra": {"parameters": query} if query else {}, "responses": answers}
    properties, required = _BODIES[name]
    schema = {"type": "object", "properties": properties, "required": required}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"openapi_extra": {"requestBody": body}, "responses": answers}
