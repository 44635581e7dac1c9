"""Logs never hold what the filter masks, whoever wrote the line."""

from __future__ import annotations

import logging

from tenth.serve.privacy_rules import find
from tenth.serve.privacy_text import TextMask


class MaskingFilter(logging.Filter):
    """For handlers: masks a record's message, with its arguments put in, its fields and the text of its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the record in place; never drops one."""
        record.msg, record.args = _masked(record.getMessage()), None
        if fields := getattr(record, "fields", None):
            record.fields = {_masked(name): _field(value) for name, value in fields.items()}
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text, record.exc_info = _masked(record.exc_text), None
        if record.stack_info:
            record.stack_info = _masked(record.stack_info)
        return True


def _masked(text: str) -> str:
    mask = TextMask(find, lambda label: None)
    return mask.push(text) + mask.finish()


def _field(value: object) -> object:
    """A number stays one unless it is masked."""
    shown = _masked(str(value))
    return value if shown == str(value) else shown
