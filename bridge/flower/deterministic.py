"""Run a ServerApp that gets everything in the order of the sites, and record its messages.

Flower hands replies out as they come. A mean over three or more sites then differs in its last bits from run
to run. Node ids, which the sampling of sites depends on, are new in every run. To compare two runs to the
last bit, the ServerApp's process gets a plan with the site of each node (`PLAN_FILE`) and

- receives nodes and replies in the order of the sites' places, and
- begins with seeded random number generators of Python and numpy.

Neither the app nor Flower's files are touched. A ServerApp of plain Flower gets the same by `python -m
bridge.flower.deterministic` in place of `flwr-serverapp`. All messages are recorded beside `PLAN_FILE`, as
events like the observer's, with hashes. An `ArrayRecord`'s object id is the SHA-256 of its content (flwr 1.41
`supercore/inflatable/inflatable_object.py`, `get_object_id`).

Depends on flwr 1.41 `superlink/grid/http_grid.py`, `server/server.py`, `server/client_manager.py`
(`replaced.py`).
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from bridge.common.replaced import namespace_proxy
from bridge.fleet.replies import ROUND, Event, Reply, reply_event, round_of_group, without_lists
from bridge.flower import replaced
from bridge.launch.environment import DETERMINISTIC, SERVERAPP
from bridge.launch.plan import TRACE_FILE

WAITS = "flwr.supercore."
"""The prefix of modules that draw the length of their waits from Python's generator. A busy machine waits
more often, and other sites would be sampled then. These modules get a separate generator."""


def begin() -> None:
    """Do all this in this process, if its environment asks for it."""
    path = os.environ.get(DETERMINISTIC)
    if path:
        told = json.loads(Path(path).read_text())
        sites = {int(node): str(site) for node, site in told["sites"].items()}
        _seed(int(told["seed"]))
        places = {node: place for place, node in enumerate(sites)}
        record = _Record(Path(path).with_name(TRACE_FILE), sites)
        replaced.replace(replaced.GRID, lambda kind: _ordered(kind, places, record))
        _put_clients_in_order(places)


def _seed(seed: int) -> None:
    random.seed(seed)
    own, uniform = random.Random(), random.uniform

    def apart(a: float, b: float) -> float:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return (own.uniform if caller.startswith(WAITS) else uniform)(a, b)

    random.uniform = apart
    numpy: Any = importlib.import_module("numpy")
    numpy.random.seed(seed % 2**32)


def _place(places: Mapping[int, int], node: int) -> tuple[int, int]:
    return places.get(node, len(places)), node


def _ordered(kind: Any, places: Mapping[int, int], record: _Record) -> type[Any]:
    """Return a grid that gives nodes and replies in the order of the sites, and records the messages."""

    class OrderedGrid(kind):  # type: ignore[misc]
        def get_nodes(self) -> list[Any]:
            return sorted(super().get_nodes(), key=lambda node: _place(places, node.node_id))

        def send_and_receive(self, messages: Iterable[Message], **options: Any) -> list[Message]:
            replies = super().send_and_receive(messages, **options)
            return sorted(replies, key=lambda reply: _place(places, reply.metadata.src_node_id))

        def push_messages(self, messages: Iterable[Message]) -> Any:
            sent = list(messages)
            return record.sent(sent, lambda: super(OrderedGrid, self).push_messages(sent))

        def pull_messages(self, *ids: Any, **by_name: Any) -> list[Message]:
            # flwr 1.43 has another name for the ids, and accepts none for all replies that are there.
            replies = list(super().pull_messages(*ids, **by_name))
            for reply in replies:
                record.got(reply)
            return replies

    return OrderedGrid


def _put_clients_in_order(places: Mapping[int, int]) -> None:
    """Order the clients of legacy apps, which are kept by their nodes' ids and called by one thread each."""

    def in_order(register: Callable[..., Any]) -> Callable[..., Any]:
        def register_in_order(self: Any, client: Any) -> Any:
            done = register(self, client)
            self.clients = dict(sorted(self.clients.items(), key=lambda item: _place(places, int(item[0]))))
            return done

        return register_in_order

    def place(future: concurrent.futures.Future[Any]) -> tuple[int, int]:
        failed = future.exception() is not None
        return (len(places) + 1, 0) if failed else _place(places, int(future.result()[0].cid))

    def wait(*args: Any, **options: Any) -> tuple[list[Any], Any]:
        done, not_done = concurrent.futures.wait(*args, **options)
        return sorted(done, key=place), not_done

    replaced.replace(replaced.REGISTER_CLIENT, in_order)
    futures = namespace_proxy(concurrent.futures, wait=wait)
    replaced.replace(replaced.FUTURES, lambda _: namespace_proxy(concurrent, futures=futures))


class _Record:
    """Records the messages that pass the grid. Thread-safe: a legacy app has a thread for each client."""

    def __init__(self, file: Path, sites: dict[int, str]) -> None:
        self._file, self._sites = file, sites
        self._lock = threading.Lock()
        self._rounds: dict[str, int] = {}
        """By message id."""
        self._begun: set[int] = set()

    def sent(self, messages: list[Message], push: Callable[[], Any]) -> Any:
        """Record the messages that `push` sends. Return their ids."""
        events = [self._sent(message) for message in messages]
        ids = list(push())
        with self._lock:
            for message_id, event in zip(ids, events, strict=False):
                self._rounds[message_id] = event["round"]
        return ids

    def _sent(self, message: Message) -> Event:
        content = message.content if message.has_content() else RecordDict()
        data = message.metadata
        number = round_of_group(data.group_id) or _round(content)
        with self._lock:
            if number not in self._begun:
                self._begun.add(number)
                self._write({"event": "round", "round": number, "of": None, "t": time.time()})
            event = {
                "event": "sent",
                "round": number,
                "site": self._site(data.dst_node_id),
                "kind": data.message_type.split(".")[0],
                "parameters": parameters_of(content),
            }
            self._write(event)
        return event

    def got(self, reply: Message) -> None:
        """Record a reply, or a message that replies to nothing."""
        data = reply.metadata
        content = reply.content if reply.has_content() else RecordDict()
        error = "" if reply.has_content() else reply.error.reason or f"error {reply.error.code}"
        with self._lock:
            kind, number = data.message_type.split(".")[0], self._rounds.get(data.reply_to_message_id, 0)
            told = Reply(self._site(data.src_node_id), number, kind, "", error)
            records = {
                name: dict(record) if isinstance(record, MetricRecord) else without_lists(record)
                for name, record in content.items()
                if isinstance(record, MetricRecord | ConfigRecord)
            }
            self._write({**reply_event(told, records), "parameters": parameters_of(content)})

    def _site(self, node: int) -> str:
        return self._sites.get(node, str(node))

    def _write(self, event: Event) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(event) + "\n")


def _round(content: RecordDict) -> int:
    records = (record for record in content.values() if isinstance(record, ConfigRecord))
    numbers = (record.get(ROUND) for record in records)
    return next((number for number in numbers if type(number) is int), 0)


def parameters_of(content: RecordDict) -> str | None:
    """Return the SHA-256 (hexadecimal) of all arrays in a message, or None if it has none. For several
    records, it is the SHA-256 of theirs in the order of their names."""
    hashes = [content[name].object_id for name in sorted(content) if isinstance(content[name], ArrayRecord)]
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def main() -> None:
    """Run `flwr-serverapp`, in order."""
    sys.argv = [SERVERAPP, *sys.argv[1:]]
    begin()
    (entry,) = entry_points(group="console_scripts", name=SERVERAPP)
    entry.load()()


if __name__ == "__main__":
    main()
