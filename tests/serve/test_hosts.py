"""Names that a server may be called by: every spelling of its own, and none of others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenth.errors import RequestError
from tenth.serve.hosts import check_origins, checked_hosts, host_name, is_loopback
from tenth.serve.service import ServeOptions
from tests.serve.served import scripted, serving, within

OWN = (
    "localhost",
    "localhost:8000",
    "LocalHost:1",
    "localhost.",
    "localhost.:8000",
    "localhost:",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.255.3.4:65535",
    "127.0.0.1.",
    "[::1]",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]:80",
    "[::ffff:127.0.0.1]:8000",
    "[::FFFF:7f00:1]",
)
OTHER = (
    "",
    " ",
    ":8000",
    ".",
    "localhost..",
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "evil.localhost",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil.example",
    "evil.example#localhost",
    "localhost, evil.example",
    "localhost:8000:8000",
    "localhost:http",
    "localhost:-1",
    "http://localhost",
    "localhost/",
    "127.0.0.01",
    "127.1",
    "2130706433",
    "0.0.0.0",
    "128.0.0.1",
    "::1",
    "::1:8000",
    "[::1",
    "::1]",
    "[::1]x",
    "[::2]",
    "[::]",
    "[::1%lo]",
    "[127.0.0.1]",
    "[localhost]",
    "[::ffff:8.8.8.8]",
    "lócalhost",
    "localhost\x00",
)


async def ask(client: Any, *hosts: str, path: str = "/version", method: str = "GET", **headers: str) -> Any:
    given = [("host", host.encode("latin-1")) for host in hosts]
    return await client.request(method, path, headers=[*given, *headers.items()])


def checked(names: tuple[str, ...] | None, **options: Any) -> Any:
    return serving(scripted(lambda _: "fine"), ServeOptions(hosts=names, **options))


def test_every_spelling_of_this_machine_and_no_other_name() -> None:
    async def work() -> None:
        async with checked(()) as (_, client):
            wrong = [host for host in OWN if (await ask(client, host)).status_code != 200]
            wrong += [host for host in OTHER if (await ask(client, host)).status_code != 403]
            assert not wrong

    within(30, work())


def test_the_refusal_is_an_error_object_of_its_path() -> None:
    async def work() -> None:
        async with checked(("secret.lan",), origins=("*",)) as (_, client):
            answer = await ask(client, "evil.example", path="/v1/models")
            error = answer.json()["error"]
            assert (answer.status_code, error["type"], error["code"]) == (403, "permission_error", "host_not_allowed")
            assert error["message"].startswith("the Host header is 'evil.example'; this server answers to localhost")
            assert "\n" not in error["message"]
            assert "secret.lan" not in answer.text  # a page of others may read this answer
            assert len(answer.headers["x-request-id"]) == 32
            anthropic = await ask(client, "evil.example", path="/v1/messages", method="POST")
            assert (anthropic.json()["type"], anthropic.json()["error"]["type"]) == ("error", "permission_error")
            preflight = {"origin": "http://evil.example", "access-control-request-method": "POST"}
            asked = await ask(client, "evil.example", path="/v1/models", method="OPTIONS", **preflight)
            assert asked.status_code == 403
            assert "access-control-allow-origin" not in asked.headers
            for path in ("/health", "/ready", "/nothing"):
                assert (await ask(client, "evil.example", path=path)).status_code == 403
            long = (await ask(client, "e" * 5000)).json()["error"]["message"]
            assert len(long) < 300

    within(30, work())


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ((), "is missing"),
        (("localhost", "localhost"), "is there more than once"),
        (("localhost", "evil.example"), "is there more than once"),
        (("",), "is ''"),
    ],
)
def test_one_host_header_must_be_there(hosts: tuple[str, ...], words: str) -> None:
    async def work() -> None:
        sent = list[Any]()

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async with checked(()) as (_, client):
            headers = [(b"host", host.encode()) for host in hosts]
            scope = {"type": "http", "method": "GET", "path": "/health", "headers": headers, "query_string": b""}
            await client._transport.app(scope, receive, send)
        assert sent[0]["status"] == 403
        assert f"the Host header {words}; ".encode() in sent[1]["body"]

    within(30, work())


def test_names_that_were_allowed() -> None:
    async def work() -> None:
        names = checked_hosts("0.0.0.0", ["Model.LAN.", "::2", "192.168.1.5", "xn--mnchen-3ya.example"])
        async with checked(names) as (_, client):
            fine = ("model.lan", "MODEL.lan:8000", "model.lan.", "[0::2]:8000", "192.168.1.5:1", "localhost")
            for host in (*fine, "xn--mnchen-3ya.example"):
                assert (await ask(client, host)).status_code == 200, host
            for host in ("lan", "a.model.lan", "modelxlan", "192.168.1.50", "[::3]"):
                assert (await ask(client, host)).status_code == 403, host

    within(30, work())


def test_without_a_check_any_name_is_right() -> None:
    async def work() -> None:
        async with checked(None) as (_, client):
            assert (await ask(client, "evil.example")).status_code == 200

    within(30, work())


def test_where_there_is_a_check() -> None:
    for address in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert checked_hosts(address, []) == ()
        assert checked_hosts(address, ["a"]) == ("a",)
    for address in ("0.0.0.0", "::", "192.168.1.5", "fe80::1%eth0"):
        assert checked_hosts(address, []) is None
        assert checked_hosts(address, ["a"]) == ("a",)


@pytest.mark.parametrize("name", ["", ".", "*", "a:80", "[::1]:80", "http://a", "a/b", "a b", "münchen", "::zz", "a,b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(RequestError, match=r"--allow-host is .*, it must be a name or an address") as error:
        checked_hosts("127.0.0.1", [name])
    assert "\n" not in str(error.value)


def test_origins_of_pages() -> None:
    check_origins(["*", "null", "https://a.example", "http://localhost:3000", "http://[::1]:80", "app://obsidian.md"])
    for origin in (
        "",
        "nonsense",
        "a.example",
        "https://",
        "https://a/",
        "https://a/b",
        "https://A",
        "https://u@a",
        "**",
    ):
        with pytest.raises(RequestError, match=r"--allow-origin is .*, such as https://app\.example\.org"):
            check_origins([origin])


@given(st.ip_addresses(v=4) | st.ip_addresses(v=6), st.none() | st.integers(0, 65535))
def test_addresses_are_read_as_python_reads_them(address: Any, port: int | None) -> None:
    written = f"[{address}]" if address.version == 6 else str(address)
    assert host_name(written + ("" if port is None else f":{port}")) == str(address)
    mapped = getattr(address, "ipv4_mapped", None)
    assert is_loopback(str(address)) == (mapped or address).is_loopback


@given(st.text(max_size=30))
def test_any_header_is_a_name_or_none(header: str) -> None:
    name = host_name(header)
    if name is not None:
        assert name in header.lower() or ":" in name
        assert not set(name) & set("/@#, []\\")
