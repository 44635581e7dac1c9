"""A first compilation of somebody's grammar in a process that may run out of time or memory, or crash.

llguidance counts what a grammar costs and gives up in time, but for a few texts that overflow its stack (a chain of
some ten thousand rules), which would end a whole server.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from tenth.engine import grammar_worker
from tenth.engine.grammar_matcher import one_line
from tenth.engine.grammar_worker import GrammarLimits, Language
from tenth.errors import RequestError

_INHERITED = ("TZ", "LD_LIBRARY_PATH")  # what Python itself may need


def try_grammar(language: Language, text: str, special_names: Sequence[str], limits: GrammarLimits) -> None:
    """Compile a grammar elsewhere; RequestError where that fails."""
    request = {"language": language, "text": text, "specials": list(special_names), "limits": asdict(limits)}
    try:
        done = subprocess.run(
            [sys.executable, "-I", grammar_worker.__file__],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=limits.seconds,
            env={name: os.environ[name] for name in _INHERITED if name in os.environ},
            cwd="/",
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RequestError(f"{language} grammar: it is not compiled within {limits.seconds:g} seconds") from None
    if done.returncode:
        raise RequestError(f"{language} grammar: it needs too much memory or too deep a stack")
    error = json.loads(done.stdout)["error"]
    if error:
        raise RequestError(f"{language} grammar: {one_line(error)}")
