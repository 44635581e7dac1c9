"""Clients of all sorts at once: patient ones, hasty ones, rude ones, and some who may not come in."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

from tests.serve.asks import PATHS, Api, Ask, Said, streamed, whole
from tests.serve.wire import Broken, Wire, request

End = Literal["answered", "refused", "left"]
PATIENCE = 60.0
"""Seconds after which a client says that it was forgotten."""
BODY = 256 << 10
"""Bytes of a body that the server takes."""


@dataclass
class Told:
    """What a client knows of one request."""

    name: str
    kind: str
    end: End
    status: int = 0
    said: Said | None = None
    key: str = ""


@dataclass
class Crowd:
    """So many clients, each with a question behind the other; `told` is what came of them, `wrong` what must not be.

    `sent` are the bytes of bodies that were answered. After each `run` other questions are asked.
    """

    port: int
    keys: dict[str, str]
    seed: int = 0
    sent: int = 0
    told: list[Told] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    async def run(self, clients: int, seconds: float) -> None:
        """Ask for so long, and wait for what is still to be answered."""
        end = time.monotonic() + seconds
        await asyncio.gather(*(self._client(number, end) for number in range(clients)))
        self.seed += 1

    @property
    def kinds(self) -> Counter[str]:
        """How many there were of each."""
        return Counter(one.kind for one in self.told)

    async def _client(self, number: int, end: float) -> None:
        client = Client(self, f"s{self.seed}c{number}", random.Random(f"{self.seed} {number}"))
        kinds, weights = list(MANNERS), [weight for weight, _ in MANNERS.values()]
        kind = kinds[number % len(kinds)]  # each at least once
        while time.monotonic() < end:
            name = client.begin(kind)
            try:
                async with asyncio.timeout(PATIENCE):
                    await MANNERS[kind][1](client)
            except TimeoutError:
                self.wrong.append(f"{kind} {name}: no end within {PATIENCE:g} seconds")
            except (AssertionError, Broken, KeyError, ValueError, OSError) as error:
                self.wrong.append(f"{kind} {name}: {type(error).__name__}: {str(error)[:500]}")
                client.drop()
            (kind,) = client.random.choices(kinds, weights)
        client.drop()


class Client:
    """One of them, with a connection that it keeps where it is on good terms with the server."""

    def __init__(self, crowd: Crowd, name: str, chance: random.Random) -> None:
        self.crowd, self.random, self._name, self._count, self._kind = crowd, chance, name, 0, ""
        self._wire: Wire | None = None

    def begin(self, kind: str) -> str:
        """The name of the next request."""
        self._count, self._kind = self._count + 1, kind
        return self.name

    @property
    def name(self) -> str:
        return f"{self._name}n{self._count}"

    async def wire(self, *, fresh: bool = False, small: bool = False) -> Wire:
        if fresh or small:
            self.drop()
        if self._wire is None:
            self._wire = await Wire.open(self.crowd.port, small=small)
        return self._wire

    def drop(self) -> None:
        if self._wire is not None:
            self._wire.leave(reset=self.random.random() < 0.5)
            self._wire = None

    def ended(self, end: End, status: int = 0, said: Said | None = None, key: str = "") -> None:
        self.crowd.told.append(Told(self.name, self._kind, end, status, said, key))

    def ask(self, *, length: int | None = None, most: int | None = None, api: Api | None = None, n: int = 1) -> Ask:
        """A question that nobody has asked before."""
        draw = self.random
        kind = api or draw.choice(list(PATHS))
        return Ask(
            kind,
            self.name,
            length or draw.randint(10, 60),
            most or draw.choice((400, 25)),
            n=n,
            stream=draw.random() < 0.5,
            padding=draw.choice((0, 1000, 100_000)),
            more={"temperature": draw.choice((0, 1))},
        )

    def request(self, ask: Ask, key: str = "alice", more: tuple[str, ...] = ()) -> bytes:
        secret = self.crowd.keys[key]
        return request("POST", PATHS[ask.api], ask.body(), name=self.name, key=secret, more=more)

    async def answer(self, ask: Ask, wire: Wire, *, key: str = "alice", pause: float = 0.0) -> None:
        """Read an answer, which must be that to the question; or a refusal because there is no room."""
        await wire.head()
        assert wire.headers["x-request-id"] == self.name
        if wire.status == 429:
            assert int(wire.headers["retry-after"]) >= 1
            body = await wire.whole()
            assert body["error"]["message"]
            self.ended("refused", 429, key=key)
            await asyncio.sleep(0.05)
            return
        assert wire.status == 200, (wire.status, await wire.whole())
        said = streamed(ask, await wire.events(pause)) if ask.stream else whole(ask, await wire.whole())
        said.check(ask)
        self.crowd.sent += len(ask.body())
        self.ended("answered", 200, said, key)

    async def refused(self, wire: Wire, status: int) -> None:
        """Read a refusal."""
        assert await wire.head() == status, (wire.status, await wire.whole())
        assert (await wire.whole())["error"]["message"]
        self.ended("refused", status)


async def plain(client: Client) -> None:
    ask = client.ask(n=client.random.choice((1, 1, 1, 2)), api=client.random.choice(("chat", "completion")))
    wire = await client.wire()
    await wire.send(client.request(ask))
    await client.answer(ask, wire)


async def other_forms(client: Client) -> None:
    ask = client.ask(api=client.random.choice(("response", "message")))
    wire = await client.wire()
    await wire.send(client.request(ask, "bob"))
    await client.answer(ask, wire, key="bob")


async def again(client: Client) -> None:
    """One of few questions, which come again and again: kept answers."""
    number, api = client.random.randrange(12), client.random.choice(list(PATHS))
    ask = Ask(api, f"known{number}", 30 + number, stream=client.random.random() < 0.5, more={"temperature": 0})
    wire = await client.wire()
    await wire.send(client.request(ask))
    await client.answer(ask, wire)


async def few_at_once(client: Client) -> None:
    """A key that may run two requests."""
    ask = client.ask()
    wire = await client.wire()
    await wire.send(client.request(ask, "carol"))
    await client.answer(ask, wire, key="carol")


async def slow_writer(client: Client) -> None:
    ask = Ask(client.random.choice(list(PATHS)), client.name, 20)
    wire = await client.wire()
    await wire.send(client.request(ask), piece=1, pause=0.002)
    await client.answer(ask, wire)


async def slow_reader(client: Client) -> None:
    ask = Ask("chat", client.name, 300, stream=True, more={"temperature": 1})
    wire = await client.wire(small=True)
    await wire.send(client.request(ask))
    await client.answer(ask, wire, pause=0.01)
    client.drop()


async def leaves_in_mid_stream(client: Client) -> None:
    ask = Ask(client.random.choice(list(PATHS)), client.name, 390, stream=True, more={"temperature": 1})
    wire = await client.wire(fresh=True)
    await wire.send(client.request(ask))
    if await wire.head() == 200:
        pieces = wire.body()
        for _ in range(client.random.randint(1, 20)):
            await anext(pieces)
    client.drop()
    client.ended("left", key="alice")


async def leaves_before_the_answer(client: Client) -> None:
    ask = client.ask(length=390)
    wire = await client.wire(fresh=True)
    await wire.send(client.request(ask))
    await asyncio.sleep(client.random.choice((0, 0.01, 0.1)))
    client.drop()
    client.ended("left", key="alice")


async def leaves_in_mid_body(client: Client) -> None:
    raw = client.request(client.ask())
    wire = await client.wire(fresh=True)
    await wire.send(raw[: client.random.randint(1, len(raw) - 1)])
    await asyncio.sleep(client.random.choice((0, 0.01)))
    client.drop()
    client.ended("left", key="alice")


async def wrong_key(client: Client) -> None:
    client.crowd.keys["nobody"] = "sk-tenth-" + "x" * 43
    wire = await client.wire()
    await wire.send(client.request(client.ask(api="chat"), "nobody"))
    await client.refused(wire, 401)


async def giant_body(client: Client) -> None:
    """Larger than the server takes, and it says so; whoever goes on writing may find the connection closed."""
    ask = Ask("chat", client.name, 20, padding=BODY + client.random.choice((1, 1 << 20)))
    wire = await client.wire(fresh=True)
    raw = client.request(ask)
    if client.random.random() < 0.5:  # without a length, and so without an end
        head, _, body = client.request(ask, more=("transfer-encoding: chunked",)).partition(b"\r\n\r\n")
        raw = head + b"\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    try:
        await wire.send(raw)
        await client.refused(wire, 413)
    except Broken:
        client.ended("refused")
    client.drop()


async def no_json(client: Client) -> None:
    body = client.random.choice((b"{", b"\xff{}", b'{"messages": NaN}', b"[" * 5000, b'{"messages": []}', b"[]"))
    raw = request("POST", PATHS["chat"], body, name=client.name, key=client.crowd.keys["bob"])
    wire = await client.wire()
    await wire.send(raw)
    await client.refused(wire, 400)


async def looks(client: Client) -> None:
    path = client.random.choice(("/ready", "/health", "/v1/models"))
    wire = await client.wire()
    await wire.send(request("GET", path, None, name=client.name, key=client.crowd.keys["bob"]))
    assert await wire.head() == 200
    await wire.whole()
    client.ended("answered", 200)


Manner = Callable[[Client], Awaitable[None]]
MANNERS: dict[str, tuple[int, Manner]] = {
    one.__name__: (weight, one)
    for weight, one in (
        (30, plain),
        (16, other_forms),
        (14, again),
        (8, few_at_once),
        (4, slow_writer),
        (3, slow_reader),
        (8, leaves_in_mid_stream),
        (5, leaves_before_the_answer),
        (3, leaves_in_mid_body),
        (4, wrong_key),
        (3, giant_body),
        (4, no_json),
        (6, looks),
    )
}
