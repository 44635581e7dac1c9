"""What the tools of a request come to: what the template is given, what the answer must be, and how it is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tenth.api.tool_check import Tool, checked_tools
from tenth.api.tool_events import ToolParser
from tenth.api.tool_grammar import calls_grammar
from tenth.api.tool_hermes import HermesParser
from tenth.api.tool_xml import FUNCTION, OPEN, XmlParser
from tenth.engine.grammar import Grammar
from tenth.errors import RequestError

ToolForm = Literal["hermes", "qwen3_coder"]
FORMS: tuple[ToolForm, ...] = get_args(ToolForm)


def form_taught(template: str | None) -> ToolForm | None:
    """The form of calls that a chat template tells the model to write; None where it tells neither."""
    if template is None or OPEN not in template:
        return None
    return "qwen3_coder" if FUNCTION in template else "hermes"


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """`tools` for the template (None: it is told of none), `grammar` where a call must come.

    `callable` are the tools whose calls are read, at most `most` of them.
    """

    tools: list[Mapping[str, Any]] | None = None
    grammar: Grammar | None = None
    form: ToolForm | None = None
    callable: tuple[Tool, ...] = ()
    most: int | None = None

    @classmethod
    def read(
        cls,
        tools: object,
        tool_choice: object = None,
        parallel_tool_calls: object = None,
        *,
        template: str | None,
        form: str = "auto",
        specials: Collection[str] = (),
    ) -> ToolPlan:
        """Judge the fields of a chat's body; RequestError for what cannot be.

        `template` is the model's; `form` is one of `FORMS`, or `auto`: what the template tells the model to write.
        `specials` are tokens that no text spells (`Vocabulary.special_names`).
        """
        known = checked_tools(tools)
        if parallel_tool_calls is not None and type(parallel_tool_calls) is not bool:
            raise RequestError(f"parallel_tool_calls is {parallel_tool_calls!r:.40}, it must be true or false")
        mode, allowed = _choice(tool_choice, known)
        if mode == "none" or not known:
            return cls()
        chosen = _form(form, template)
        most = 1 if parallel_tool_calls is False else None
        grammar = calls_grammar(chosen, allowed, specials, several=most is None) if mode == "required" else None
        return cls([tool.shown for tool in known], grammar, chosen, tuple(allowed), most)

    def parser(self) -> ToolParser | None:
        """One for each answer; None where calls are not looked for: then the text is content as it is."""
        if self.form is None:
            return None
        if self.form == "hermes":
            return HermesParser([tool.name for tool in self.callable], self.most)
        return XmlParser({tool.name: tool.parameters for tool in self.callable}, self.most)


def _form(form: str, template: str | None) -> ToolForm:
    if template is None or "tools" not in template:
        raise RequestError("tools: the model's chat template knows none; leave them out, or give it another template")
    chosen = form_taught(template) if form == "auto" else form
    if chosen is None:
        raise RequestError(f"tools: the chat template teaches no form of calls that is known ({', '.join(FORMS)})")
    for known in FORMS:
        if chosen == known:
            return known
    raise RequestError(f"the form of tool calls is {form!r:.40}, it must be auto, {' or '.join(FORMS)}")


def _choice(choice: object, tools: list[Tool]) -> tuple[Literal["none", "auto", "required"], list[Tool]]:
    """Whether a call may or must come, and of which tools."""
    if choice is None:
        return "auto", tools
    if choice in ("none", "auto", "required") and isinstance(choice, str):
        if choice == "required" and not tools:
            raise RequestError("tool_choice is 'required', but there are no tools")
        return choice, tools
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return "required", [_named(choice, tools, "tool_choice")]
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        return _allowed(choice.get("allowed_tools"), tools)
    raise RequestError(
        f"tool_choice is {choice!r:.60}, it must be none, auto, required or "
        '{"type": "function", "function": {"name": ...}}'
    )


def _allowed(allowed: object, tools: list[Tool]) -> tuple[Literal["auto", "required"], list[Tool]]:
    where = "tool_choice.allowed_tools"
    if not isinstance(allowed, Mapping) or not isinstance(allowed.get("tools"), list) or not allowed["tools"]:
        raise RequestError(f"{where} must be an object with mode and a list of tools")
    mode = allowed.get("mode")
    if mode not in ("auto", "required"):
        raise RequestError(f"{where}.mode is {mode!r:.40}, it must be auto or required")
    return mode, [_named(one, tools, f"{where}.tools[{n}]") for n, one in enumerate(allowed["tools"])]


def _named(choice: object, tools: list[Tool], where: str) -> Tool:
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    found = next((tool for tool in tools if tool.name == name), None)
    if found is None:
        names = ", ".join(tool.name for tool in tools) or "none"
        raise RequestError(f"{where} names {name!r:.80}, which is not among the tools ({names:.200})")
    return found
