"""A hostile ClientApp: runs inside a site's container beside its SuperNode, and prints what became of it.

    python -c "$(cat hostile.py)" SECONDS

It knows what any process of the container's user can find out: the gateway's port, from the SuperNode's
command line. Results are one JSON object: by attack, how often each status was the answer (0: none).
"""

from __future__ import annotations

import asyncio
import base64
import collections
import contextlib
import datetime
import json
import pathlib
import random
import sys
import time
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Message, Metadata, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message

CONNECTIONS = 1000


def gateway_port() -> int:
    """Return the gateway's port once it is on a command line: the SuperNode has not registered yet."""
    while True:
        for file in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = file.read_bytes().split(b"\0")
                if b"--superlink" in line:
                    return int(line[line.index(b"--superlink") + 1].rsplit(b":", 1)[1])
        time.sleep(0.02)


class Hostile:
    """All attacks on one gateway."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)
        self._private, public = generate_key_pairs()
        self._public = public_key_to_bytes(public)
        self.results: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)

    async def post(self, attack: str, path: str, body: bytes, **headers: str) -> None:
        """One request, with a good signature of an own key."""
        timestamp = datetime.datetime.now(datetime.UTC).isoformat()
        signed = {
            "content-type": "application/protobuf",
            "flwr-public-key": base64.b64encode(self._public).decode(),
            "flwr-timestamp": timestamp,
            "flwr-signature": base64.b64encode(sign_message(self._private, timestamp.encode())).decode(),
        }
        try:
            answer = await self._client.post(path, content=body, headers={**signed, **headers})
            self.results[attack][answer.status_code] += 1
        except httpx.HTTPError:
            self.results[attack][0] += 1

    async def speak(self) -> None:
        """Speak for an own node, and for others'."""
        other = Node(node_id=random.getrandbits(63))
        metadata = Metadata(run_id=1, src_node_id=other.node_id, dst_node_id=1)
        fleet = "/v1/fleet/"
        calls: dict[str, tuple[str, Any]] = {
            "a second registration": ("register-node", RegisterNodeFleetRequest(public_key=self._public)),
            "another key": ("activate-node", ActivateNodeRequest(public_key=self._public)),
            "another's messages": ("pull-messages", PullMessagesRequest(node=other)),
            "another's heartbeat": ("send-node-heartbeat", SendNodeHeartbeatRequest(node=other)),
            "another's good-bye": ("deactivate-node", DeactivateNodeRequest(node_id=other.node_id)),
            "another's confirmation": (
                "confirm-message-received",
                ConfirmMessageReceivedRequest(node=other, run_id=1, message_object_id="0" * 64),
            ),
            "another's reply": (
                "push-messages",
                PushMessagesRequest(
                    node=other,
                    messages_list=[Message(metadata=metadata)],
                    message_object_trees=[ObjectTree()],
                ),
            ),
        }
        for attack, (name, message) in calls.items():
            await self.post(attack, fleet + name, message.SerializeToString())
        await self.post("no protobuf", fleet + "push-messages", b"\xff" * 100)
        await self.post("a large body", fleet + "push-object", b"x" * 100_000)
        await self.post("another content type", fleet + "get-run", b"", **{"content-type": "text/plain"})
        for path in (
            "/v1/control/list-runs",
            "/v1/runtime/pull-messages",
            "/health",
            "/v1/fleet/../control/x",
        ):
            await self.post("another API", path, b"")

    async def garbage(self) -> None:
        """Send bytes that are not HTTP, or nearly HTTP."""
        for number in range(100):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            head = b"POST /v1/fleet/get-run HTTP/1.1\r\ncontent-length: 4\r\n" if number % 2 else b""
            writer.write(head + random.randbytes(200) + b"\r\n\r\n")
            try:
                answer = await asyncio.wait_for(reader.read(), 10)
                self.results["garbage"][int(answer[9:12] or b"0")] += 1
            except (OSError, TimeoutError):
                self.results["garbage"][0] += 1
            writer.close()

    async def hold(self, until: float) -> None:
        """Hold as many connections open as possible, in all states, and reopen each one that is closed."""

        async def one(number: int) -> None:
            beginning = (
                b"",
                b"POST /v1",
                b"POST /v1/fleet/get-run HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n",
            )
            while time.monotonic() < until:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    self.results["connections opened"][1] += 1
                    writer.write(beginning[number % 3])
                    await reader.read()
                    writer.close()
                except OSError:
                    pass
                await asyncio.sleep(0.5)

        await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))


async def main(seconds: float) -> None:
    """Attack for so long."""
    hostile = Hostile(gateway_port())
    until = time.monotonic() + seconds
    await hostile.speak()  # Before the SuperNode itself, which takes a second to start.
    holding = asyncio.ensure_future(hostile.hold(until))
    while time.monotonic() < until:
        await hostile.speak()
        await hostile.garbage()
    holding.cancel()
    print(json.dumps(hostile.results))


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
