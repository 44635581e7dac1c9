"""Clients who ask one question behind the other, and check each answer against the model's own."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tenth.api import Model

Oracle = Callable[[str], str]


def oracle(model: Model, tokens: int) -> Oracle:
    """What the model itself answers to a text, greedily."""
    known = dict[str, str]()

    def answer(prompt: str) -> str:
        if prompt not in known:
            found = model.generate(prompt, temperature=0.0, max_tokens=tokens)
            known[prompt] = found.text
        return known[prompt]

    return answer


@dataclass
class Streams:
    """What came of all that was asked.

    `ends` are `whole`, `told` (a last event with an error), `refused` (a status) and `cut` (a connection that broke).
    """

    url: str
    tokens: int
    right: Oracle
    asked: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    whole_at: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    said: list[tuple[str, str]] = field(default_factory=list)

    async def run(self, clients: int, seconds: float) -> None:
        """Ask for so long, and wait for what is still to come."""
        end = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as http:
            await asyncio.gather(*(self._client(http, number, end) for number in range(clients)))

    @property
    def wrong(self) -> list[tuple[str, str]]:
        """Whole answers that are not the model's own."""
        return [(prompt, text) for prompt, text in self.said if text != self.right(prompt)]

    async def _client(self, http: httpx.AsyncClient, number: int, end: float) -> None:
        count = 0
        while time.monotonic() < end:
            count += 1
            self.asked += 1
            prompt = f"client {number} asks question {count % 2}:"
            try:
                how, text = await self._ask(http, prompt)
            except (httpx.HTTPError, OSError):
                how, text = "cut", ""
                await asyncio.sleep(0.1)
            self.ends[how] += 1
            if how == "whole":
                self.whole_at.append(time.monotonic())
                self.said.append((prompt, text))

    async def _ask(self, http: httpx.AsyncClient, prompt: str) -> tuple[str, str]:
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": self.tokens, "temperature": 0}
        text, ended = "", False
        async with http.stream("POST", self.url + "/v1/completions", json={**body, "stream": True}) as stream:
            if stream.status_code != 200:
                self.codes[str(stream.status_code)] += 1
                return "refused", ""
            async for line in stream.aiter_lines():
                said = line.removeprefix("data: ")
                if said == "[DONE]":
                    ended = True
                elif said and not said.startswith(":"):
                    event = json.loads(said)
                    if "error" in event:
                        self.codes[event["error"]["code"]] += 1
                        return "told", text
                    text += event["choices"][0]["text"]
        assert ended, "a stream without an end"
        return "whole", text
