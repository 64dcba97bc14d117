"""What a hostile site's message may do to the server's half of the link: nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys

from bridge.flare import channel
from bridge.relay import Call, LinkFault, Response

GOOD: dict[str, Any] = {
    CellMessageHeaderKeys.CLIENT_NAME: "site-1",
    channel._CALL: "0a1b",
    channel._PATH: "/v1/fleet/get-run",
    channel._SITE_HEADERS: json.dumps([["content-type", "x"]]),
    channel._DONE: json.dumps(["0a1a"]),
    channel._INCARNATION: 1,
}
WRONG: tuple[Any, ...] = (None, b"bytes", [], {}, 1.5)


def test_a_call_arrives_as_it_was_sent() -> None:
    for body in (b"body", bytearray(b"body"), memoryview(b"body")):
        call = channel.read_call(Message(GOOD, body))
        assert (call.id, call.done, call.incarnation) == ("0a1b", ("0a1a",), 1)
        assert call.request.path == "/v1/fleet/get-run"
        assert call.request.headers == (("content-type", "x"),)
        assert call.request.body == b"body"
    assert channel.read_call(Message(GOOD)).request.body == b""


@pytest.mark.parametrize(
    ("changed", "payload"),
    [
        *(({key: value}, b"") for key in GOOD for value in WRONG),
        *(({channel._CALL: value}, b"") for value in ("", "a" * 65, "a b", "a\r\nx: y", "é")),
        *(({channel._INCARNATION: value}, b"") for value in (0, -1, "1")),
        *(
            ({key: value}, b"")
            for key in (channel._DONE, channel._SITE_HEADERS)
            for value in ("", "{}", "1", "[1]", "[" * 100_000, "[[1, 2]]", '"a"', "x" * 300_000)
        ),
        *(
            ({channel._SITE_HEADERS: json.dumps([pair])}, b"")
            for pair in (["a"], ["a", "b", "c"], ["a", "b\r\nc: d"], ["a", "é"], ["a\0", "b"])
        ),
        *(({}, payload) for payload in (10**12, "text", [b"a"], {"a": 1}, 1.5)),
    ],
)
def test_what_is_no_call_is_refused_with_the_sites_name(changed: dict[str, Any], payload: Any) -> None:
    told: list[tuple[str, str]] = []

    async def answer(site: str, call: Call) -> Response:
        raise AssertionError(f"passed: {call}")

    headers = {key: value for key, value in (GOOD | changed).items() if value is not None}
    reply = asyncio.run(
        channel._answer(Message(headers, payload), answer, lambda site, reason: told.append((site, reason)))
    )
    assert reply.get_header(channel._STATUS) == 400
    assert len(told) == 1 and len(told[0][1]) < 200
    if CellMessageHeaderKeys.CLIENT_NAME not in changed:
        assert told[0][0] == "site-1"


def test_a_fault_is_no_refusal() -> None:
    async def answer(site: str, call: Call) -> Response:
        raise LinkFault("later")

    def refuse(site: str, reason: str) -> None:
        raise AssertionError(reason)

    reply = asyncio.run(channel._answer(Message(GOOD, b""), answer, refuse))
    assert reply.get_header(channel._FAULT) == "later"
