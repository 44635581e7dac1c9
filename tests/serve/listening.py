"""A server of a scripted model at a real port that notes what the model was shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.serve.real import server
from tests.serve.served import scripted


@dataclass
class Listening:
    """Where it listens, and each prompt that the model has answered."""

    url: str = ""
    prompts: list[str] = field(default_factory=list)


@contextmanager
def listening(
    answers: Callable[[str], str | None], *, template: str | None = None, context: int = 16384
) -> Iterator[Listening]:
    """A server in a thread, until it is left."""
    found = Listening()

    def noted(prompt: str) -> str | None:
        answer = answers(prompt)
        if answer is not None:
            found.prompts.append(prompt)
        return answer

    with server(scripted(noted, context=context, template=template), pages=2000) as running:
        found.url = running.url
        yield found
