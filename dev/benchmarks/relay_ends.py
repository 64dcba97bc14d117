"""Imitate the SuperNode and the SuperLink at the two ends of the relay in `dev.benchmarks.relay`.

Both speak the Fleet API with flwr's own messages, since the forwarder checks the owner of each call's node,
message and object. The SuperNode's HTTP client and the SuperLink's HTTP server are those of flwr 1.41:
`httpx.Client`, and uvicorn with its defaults.
"""

from __future__ import annotations

import base64
import itertools
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import httpx
import uvicorn
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
    RegisterNodeFleetResponse,
)
from flwr.proto.message_pb2 import (
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node

from bridge.fleet import wire

RUN, SUPERLINK_NODE = 1, 1
SESSION = "session"
TIMEOUT = 60.0
"""Seconds for one call. 50 MiB take about one."""

Scope = MutableMapping[str, Any]


PUSHES = 4096
"""Objects of each size that are pushed, each only once: a repetition would be answered from memory."""


def object_id(size: int, number: int = 0) -> str:
    """Return the ID of the `number`th object of `size` bytes."""
    return f"{size:032x}{number:032x}"


def superlink(ready: Connection, sizes: tuple[int, ...], tls: tuple[str, str] | None) -> None:
    """Serve a SuperLink for objects of `sizes`, and send its port through `ready`.

    With `tls`, the files of a certificate and its key, it serves HTTPS. Run it in a separate process, and
    kill that at the end.
    """
    files = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls else {}
    app = _superlink_app(sizes)
    config = uvicorn.Config(app, port=0, log_level="error", access_log=False, lifespan="off", **files)  # type: ignore[arg-type]
    sock = config.bind_socket()
    sock.listen()  # Clients that connect from now on wait until they are served.
    ready.send(sock.getsockname()[1])
    uvicorn.Server(config).run([sock])


def _superlink_app(sizes: tuple[int, ...]) -> Callable[[Scope, Any, Any], Awaitable[None]]:
    nodes = itertools.count(1000)
    keys: dict[bytes, int] = {}
    objects: dict[str, bytes] = {
        object_id(size): PullObjectResponse(
            object_found=True, object_available=True, object_content=bytes(size)
        ).SerializeToString()
        for size in sizes
    }

    def answer(name: str, body: bytes) -> bytes:
        match name:
            case wire.REGISTER:
                keys[RegisterNodeFleetRequest.FromString(body).public_key] = next(nodes)
                return bytes(RegisterNodeFleetResponse().SerializeToString())
            case wire.ACTIVATE:
                key = ActivateNodeRequest.FromString(body).public_key
                return bytes(ActivateNodeResponse(node_id=keys[key]).SerializeToString())
            case wire.PULL:
                return _two_messages(PullMessagesRequest.FromString(body).node.node_id, sizes)
            case wire.PUSH:
                names = [object_id(size, number) for size in sizes for number in range(PUSHES)]
                pushed = PushMessagesResponse(session_id=SESSION, objects_to_push=names)
                return bytes(pushed.SerializeToString())
            case wire.PUSH_OBJECT:
                # Parse it, as a SuperLink has to.
                stored = len(PushObjectRequest.FromString(body).object_content) >= 0
                return bytes(PushObjectResponse(stored=stored).SerializeToString())
            case wire.PULL_OBJECT:
                return objects[PullObjectRequest.FromString(body).object_id]
        raise AssertionError(f"nobody calls {name} here")

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        name = wire.call_name(scope["path"])
        assert name is not None
        body = answer(name, b"".join(parts))
        headers = [
            (b"content-type", wire.MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def _two_messages(node: int, sizes: tuple[int, ...]) -> bytes:
    """Return one message to pull objects of, and one to reply to: a reply ends the right to pull."""
    names = ("to pull", "to reply to")
    return bytes(
        PullMessagesResponse(
            messages_list=[
                Message(
                    metadata=Metadata(
                        run_id=RUN, message_id=name, src_node_id=SUPERLINK_NODE, dst_node_id=node
                    )
                )
                for name in names
            ],
            message_object_trees=[
                ObjectTree(object_id=name, children=[ObjectTree(object_id=object_id(size)) for size in sizes])
                for name in names
            ],
        ).SerializeToString()
    )


@dataclass(frozen=True)
class Block:
    """Calls to make one after the other: their way, direction and size, and their number or total time."""

    way: str
    direction: str
    size: int
    count: int = 0
    seconds: float = 0.0
    callers: int = 1


class SuperNode:
    """A SuperNode's end of one way: registered, and given messages to pull from and to reply to."""

    def __init__(self, base_url: str, key: bytes, ca: str) -> None:
        context = ssl.create_default_context(cafile=ca)
        self._client = httpx.Client(base_url=base_url, verify=context, timeout=TIMEOUT, trust_env=False)
        self._headers = {
            "content-type": wire.MEDIA_TYPE,
            wire.PUBLIC_KEY: base64.b64encode(key).decode(),
        }
        self._number = itertools.count()
        self._call(wire.REGISTER, RegisterNodeFleetRequest(public_key=key).SerializeToString())
        activated = self._call(
            wire.ACTIVATE, ActivateNodeRequest(public_key=key, heartbeat_interval=30).SerializeToString()
        )
        node = ActivateNodeResponse.FromString(activated).node_id
        self._node = Node(node_id=node)
        self._call(wire.PULL, PullMessagesRequest(node=self._node).SerializeToString())
        reply = Metadata(
            run_id=RUN,
            message_id="reply",
            src_node_id=node,
            dst_node_id=SUPERLINK_NODE,
            reply_to_message_id="to reply to",
        )
        push = PushMessagesRequest(
            node=self._node,
            messages_list=[Message(metadata=reply)],
            message_object_trees=[ObjectTree(object_id="reply")],
        )
        self._call(wire.PUSH, push.SerializeToString())

    def _call(self, name: str, body: bytes) -> bytes:
        answer = self._client.post(wire.PREFIX + name, content=body, headers=self._headers)
        answer.raise_for_status()
        content: bytes = answer.content
        return content

    def request(self, direction: str, size: int) -> tuple[str, bytes]:
        """Return the call that brings `size` bytes up or down."""
        if direction == "download":
            pull = PullObjectRequest(node=self._node, run_id=RUN, object_id=object_id(size))
            return wire.PULL_OBJECT, pull.SerializeToString()
        push = PushObjectRequest(
            node=self._node,
            run_id=RUN,
            object_id=object_id(size, next(self._number) % PUSHES),
            object_content=bytes(size),
            session_id=SESSION,
        )
        return wire.PUSH_OBJECT, push.SerializeToString()

    def carry_out(self, block: Block) -> list[float]:
        """Make a block's calls, and return the seconds of each."""
        took: list[float] = []
        lock = threading.Lock()

        def one_after_the_other() -> None:
            until = time.monotonic() + block.seconds
            made = 0
            while made < block.count or time.monotonic() < until:
                name, body = self.request(block.direction, block.size)
                began = time.perf_counter()
                answer = self._call(name, body)
                seconds = time.perf_counter() - began
                made += 1
                if block.direction == "download" and len(answer) < block.size:
                    raise AssertionError(f"{len(answer)} bytes came, {block.size} were asked for")
                with lock:
                    took.append(seconds)

        callers = [threading.Thread(target=one_after_the_other) for _ in range(block.callers)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        return took


def supernode(commands: Connection, ways: dict[str, str], key: bytes, ca: str) -> None:
    """Carry out `Block`s that come through `commands`, over the ways (name to URL), and send back each call's
    seconds. Run it in a separate process. None ends it."""
    nodes = {way: SuperNode(url, key, ca) for way, url in ways.items()}
    commands.send("ready")
    while (block := commands.recv()) is not None:
        commands.send(nodes[block.way].carry_out(block))
