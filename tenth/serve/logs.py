"""The log: lines for people, or JSON objects for programs. No prompt and no answer is in it unless it was asked for."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

from tenth.serve.privacy_log import MaskingFilter

LogForm = Literal["human", "json"]


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, logger, message, then whatever fields there are."""
        fields = getattr(record, "fields", {})
        line = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage(), **fields}
        if trace := _traceback(record):
            line["traceback"] = trace
        return json.dumps(line, ensure_ascii=False, default=str)


class HumanLines(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, message, fields."""
        fields = getattr(record, "fields", {})
        words = record.getMessage() if not fields else _sentence(fields)
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return "\n".join(filter(None, (f"{_time(record)[11:]} {level}{words}", _traceback(record))))


def log_to_stderr(form: LogForm, *, level: int = logging.INFO, masked: bool = False) -> None:
    """Send what this program says while it serves to standard error, `masked` as the privacy filter does."""
    handler = logging.StreamHandler(sys.stderr)
    if masked:
        handler.addFilter(MaskingFilter())
    handler.setFormatter(JsonLines() if form == "json" else HumanLines())
    for name in ("tenth", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level if name == "tenth" else logging.WARNING)


def _traceback(record: logging.LogRecord) -> str:
    """As a filter left it, where there is one."""
    return record.exc_text or (logging.Formatter().formatException(record.exc_info) if record.exc_info else "")


def _sentence(fields: dict[str, object]) -> str:
    shown = dict(fields)
    head = " ".join(str(shown.pop(name)) for name in ("method", "path", "status") if name in shown)
    rest = " ".join(f"{name}={_one_line(value)}" for name, value in shown.items())
    return f"{head} {rest}"


def _one_line(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c.isspace() or not c.isprintable() for c in text) else text


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
