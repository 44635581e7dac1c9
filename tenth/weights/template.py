"""Chat templates: messages to the prompt a model was trained on, as text or as token ids."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tenth.errors import RequestError, TemplateError
from tenth.weights.template_messages import Json, mark_context, normal_messages, normal_tools, plain
from tenth.weights.template_process import RenderLimits, TemplateWorker, shared_worker
from tenth.weights.tokenizer import Tokenizer
from tenth.weights.tokenizer_added import fresh_marker

_LONGEST = 1 << 20  # characters of a template's source
_RESERVED = frozenset(
    "messages tools add_generation_prompt raise_exception strftime_now "
    "range dict lipsum cycler joiner namespace".split()
)


class ChatTemplate:
    """A chat template's source, rendered in a process of its own (see `template_worker.py`).

    `variables` are the tokenizer's names for its tokens (`Tokenizer.special_tokens`: bos_token, eos_token, ...).
    Every failure of the template is a TemplateError with its line, where there is one; whatever is wrong with messages,
    tools or arguments is a RequestError.
    """

    def __init__(
        self,
        source: str,
        *,
        variables: Mapping[str, str] | None = None,
        limits: RenderLimits | None = None,
        worker: TemplateWorker | None = None,
    ):
        if not isinstance(source, str) or len(source) > _LONGEST:
            size = f"{len(source)} characters" if isinstance(source, str) else type(source).__name__
            raise TemplateError(f"a chat template must be text of at most {_LONGEST} characters, not {size}")
        self.source = source
        self._variables = dict(variables or {})
        self._limits = limits or RenderLimits()
        self._worker = worker or shared_worker()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        arguments: Mapping[str, object] | None = None,
    ) -> str:
        """Give the prompt as plain text, for people to read.

        `arguments` are further variables, such as `{"enable_thinking": False}`; a template ignores those it does not
        know. In this text a control token written by a user looks like a real one: `encode` can tell them apart.
        """
        context = self._context(messages, tools, add_generation_prompt, arguments)
        return self._worker.render(self.source, json.dumps(context), self._limits)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        arguments: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Give the prompt as token ids, with control tokens only where the template itself put them.

        No added token can come from a user's, system's or tool's words, from tool names, definitions and arguments, or
        from where these meet other text; they are encoded as ordinary text. In an assistant's content and reasoning,
        which templates take apart at tokens such as `</think>`, that holds for special tokens only.
        """
        context = self._context(messages, tools, add_generation_prompt, arguments)
        marker = fresh_marker(json.dumps([self.source, context]))
        trusted = frozenset(self._variables) - frozenset(arguments or {})
        marked = mark_context(context, trusted, tokenizer, marker)
        text = self._worker.render(self.source, json.dumps(marked), self._limits)
        return tokenizer.encode_marked(text, marker)

    def _context(
        self, messages: object, tools: object, add_generation_prompt: bool, arguments: Mapping[str, object] | None
    ) -> Json:
        for name in arguments or {}:
            if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
                raise RequestError(f"template argument {name!r:.60} must be a name")
            if name in _RESERVED or name in self._variables:
                raise RequestError(f"template argument {name!r:.60} is reserved; it is not a request's to set")
        return {
            "documents": None,
            **self._variables,
            **plain(arguments or {}, "template arguments"),
            "messages": normal_messages(messages),
            "tools": normal_tools(tools),
            "add_generation_prompt": bool(add_generation_prompt),
        }
