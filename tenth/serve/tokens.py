"""`/tokenize` and `/detokenize`, in the forms of vLLM and of llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tenth.api import body_fields as f
from tenth.api.message_fields import check_messages
from tenth.api.model import Model
from tenth.errors import RequestError
from tenth.serve.body import read_body
from tenth.serve.openapi import described
from tenth.serve.service import service_of

router = APIRouter()
_TOKENIZE = set(
    "model prompt content messages tools chat_template_kwargs enable_thinking add_generation_prompt "
    "add_special_tokens add_special return_token_strs with_pieces".split()
)
_DETOKENIZE = {"model", "tokens"}


@router.post("/tokenize", **described("tokenize"))
async def tokenize(request: Request) -> Response:
    """The ids of a text, or of a chat behind the model's template."""
    service, body = service_of(request), await read_body(request)
    service.check(body)
    ids = await service.apart(lambda: _ids(service.model, body))
    found: dict[str, Any] = {"count": len(ids), "max_model_len": service.model_context, "tokens": ids}
    if f.flag(body, "return_token_strs") or f.flag(body, "with_pieces"):
        tokenizer = service.model.tokenizer
        found["token_strs"] = [tokenizer.token_bytes(token).decode(errors="replace") for token in ids]
    return JSONResponse(found)


@router.post("/detokenize", **described("detokenize"))
async def detokenize(request: Request) -> Response:
    """The text of ids."""
    service, body = service_of(request), await read_body(request)
    service.check(body)
    _check_names(body, _DETOKENIZE)
    if body.get("tokens") is None:
        raise RequestError("tokens is missing: a list of token ids must be there")
    ids = f.ids(body, "tokens")
    text = await service.apart(lambda: service.model.tokenizer.decode(ids, skip_specials=False))
    return JSONResponse({"prompt": text, "content": text})


def _ids(model: Model, body: Mapping[str, Any]) -> list[int]:
    _check_names(body, _TOKENIZE)
    given = {name: value for name, value in body.items() if value is not None}
    if "messages" in given:
        if model.template is None:
            raise RequestError("messages: the model has no chat template")
        for flag in ("add_special_tokens", "add_special"):
            if f.flag(given, flag):
                raise RequestError(f"{flag} goes with a text: a chat's special tokens are those of its template")
        return model.template.encode(
            model.tokenizer,
            _messages(given["messages"], model.template.source),
            tools=given.get("tools"),
            add_generation_prompt=f.flag(given, "add_generation_prompt", True),
            arguments=f.template_arguments(given),
        )
    name = "content" if "content" in given else "prompt"
    if name not in given:
        raise RequestError("prompt is missing: a text, or messages, must be there")
    begin = f.flag(given, "add_special" if name == "content" else "add_special_tokens", name == "prompt")
    return model.tokenizer.encode(f.text(given, name), begin=begin)


def _messages(messages: Any, template: str) -> Any:
    if isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages):
        check_messages(messages, template)
    return messages  # what else is wrong is for the template to say


def _check_names(body: Mapping[str, Any], known: set[str]) -> None:
    for name in body:
        if name not in known:
            raise RequestError(f"no field here is named {name!r:.40} (there are: {', '.join(sorted(known))})")
