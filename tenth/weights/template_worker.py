"""The process in which chat templates run: requests come in on stdin, rendered text goes out on stdout.

A template is a program from whoever made the model. It runs in jinja2's sandbox, and the process around it has no
environment, may open no file, start no process and use little memory, should the sandbox fail. `template_process.py`
starts it as `python -I template_worker.py` and kills it when it takes too long. Only the standard library and jinja2
are imported here.

A message is four bytes of length, big-endian, and so much JSON. The worker sends `{"ready": true}` once, answers each
request `{source, context, seconds, output}` with `{"started": true}` and then `{"text"}` or `{"error", "line"}`.
"""

import datetime
import json
import math
import resource
import struct
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, BinaryIO

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY = 512 << 20  # bytes of address space
_LENGTH = struct.Struct(">I")


class _OutputTooLong(Exception):
    pass


class _Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it is as if it were not there."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Give the statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """jinja2's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace may not hold the name {name!r}")
        super().__setitem__(name, value)


def _raise_exception(message: object) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def _to_json(
    value: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, in which reaching for what is forbidden is an error at once rather than an undefined value."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Refuse an attribute of Python's own."""
        kind = type(obj).__name__
        raise jinja2.exceptions.SecurityError(f"the attribute {attribute!r} of a {kind} is out of reach")


def _environment() -> ImmutableSandboxedEnvironment:
    """Build the environment that Hugging Face's templates are written for."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.globals["namespace"] = _Namespace
    environment.globals["dict"] = lambda *pairs, **items: dict(*pairs, **items)  # not the class, with its attributes
    return environment


@lru_cache(maxsize=8)
def _compile(source: str) -> tuple[jinja2.Template, bool]:
    """Compile a template, and tell whether it asks if a message's content is none."""
    environment = _environment()
    tree = environment.parse(source)
    asked = [test.node for test in tree.find_all(nodes.Test) if test.name == "none"]
    asked += [test.expr for test in tree.find_all(nodes.Compare) if _compares_to_none(test)]
    return environment.from_string(tree), any(map(_is_content, asked))


def _compares_to_none(test: nodes.Compare) -> bool:
    return any(isinstance(side.expr, nodes.Const) and side.expr.value is None for side in test.ops)


def _is_content(node: nodes.Node) -> bool:
    match node:
        case nodes.Name(name="content") | nodes.Getattr(attr="content"):
            return True
        case nodes.Getitem(arg=nodes.Const(value="content")):
            return True
    return False


def _render(source: str, context: dict[str, Any], output: int) -> str:
    template, asks_none = _compile(source)
    if not asks_none:  # such templates add content to other text
        for message in context["messages"]:
            message["content"] = "" if message["content"] is None else message["content"]
    parts, length = [], 0
    for part in template.generate(context):
        length += len(part)
        if length > output:
            raise _OutputTooLong
        parts.append(part)
    return "".join(parts)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    used = time.process_time()
    _limit(resource.RLIMIT_CPU, math.ceil(used + request["seconds"]) + 1, hard=False)  # if the parent dies first
    try:
        return {"text": _render(request["source"], request["context"], request["output"])}
    except Exception as error:
        return {"error": _describe(error, request["output"]), "line": _line(error), "exhausted": _exhausted(error)}


def _exhausted(error: Exception) -> bool:
    return isinstance(error, MemoryError | RecursionError)


def _describe(error: Exception, output: int) -> str:
    match error:
        case _OutputTooLong():
            return f"it writes more than {output} characters"
        case MemoryError():
            return f"it needs more than {MEMORY >> 20} MiB of memory"
        case RecursionError():
            return "it calls itself too deeply"
        case jinja2.exceptions.SecurityError():
            return f"it does what a template may not do: {error}"
        case jinja2.exceptions.TemplateError() | ValueError() | OverflowError():
            return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _line(error: Exception) -> int | None:
    """Find the template's line: jinja2 rewrites its frames to say `<template>`."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return error.lineno
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


def _limit(what: int, soft: int, *, hard: bool = True) -> None:
    """Lower a limit of this process; a system that does not know it leaves the others to hold."""
    ceiling = resource.getrlimit(what)[1]
    try:
        resource.setrlimit(what, (soft, soft if hard else ceiling))
    except (ValueError, OSError):
        return


def _confine() -> None:
    """Take from this process all that a template has no use for."""
    time.localtime()  # reads the time zone's file, once
    late_imports = "{{ strftime_now('%B') ~ lipsum(n=1) ~ 1 // 0 }}"
    _answer({"source": late_imports, "context": {"messages": []}, "seconds": 1, "output": 1})
    _limit(resource.RLIMIT_AS, MEMORY)
    _limit(resource.RLIMIT_NOFILE, 3)
    for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        _limit(what, 0)


def _receive(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
        body = stream.read(_LENGTH.unpack(head)[0])
        yield json.loads(body)


def _send(stream: BinaryIO, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(body)) + body)
    stream.flush()


def main() -> None:
    """Serve requests until the parent closes the pipe."""
    answers = sys.stdout.buffer
    _confine()
    _send(answers, {"ready": True})
    for request in _receive(sys.stdin.buffer):
        _send(answers, {"started": True})
        answer = _answer(request)
        exhausted = answer.pop("exhausted", False)
        _send(answers, answer)
        if exhausted:
            return  # whatever is left of this process is not worth keeping


if __name__ == "__main__":
    main()
