"""A site that connects again counts as connected, whatever its old connection does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nvflare.fuel.f3.drivers.connector_info import ConnectorInfo, Mode
from nvflare.fuel.f3.endpoint import Endpoint, EndpointState
from nvflare.fuel.f3.sfm import sfm_endpoint
from nvflare.fuel.f3.sfm.conn_manager import ConnManager
from nvflare.fuel.f3.sfm.sfm_conn import SfmConnection
from nvflare.fuel.f3.sfm.sfm_endpoint import SfmEndpoint

from tests.unit.connecting import driver

driver("flowerbed_drivers")

SITE = "site-1"


class Line:
    """A connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.connector = ConnectorInfo("h", None, {}, Mode.PASSIVE, 0, 0, False, threading.Event())

    def get_conn_properties(self) -> dict[str, Any]:
        """Return nothing of interest."""
        return {}

    def register_frame_receiver(self, _: object) -> None:
        """Take note of who reads."""

    def close(self) -> None:
        """End. FLARE's thread that reads from it then reports the end."""


class Server:
    """FLARE's connections of a server, and what it was told of its site."""

    def __init__(self) -> None:
        self.manager = ConnManager(Endpoint("server"))
        self.manager.add_endpoint_monitor(self)
        self.told: list[EndpointState] = []
        self.on_gone: Callable[[], None] = lambda: None

    def state_change(self, endpoint: Endpoint) -> None:
        """Called by FLARE when the site comes and goes."""
        self.told.append(endpoint.state)
        if endpoint.state == EndpointState.DISCONNECTED:
            self.on_gone()

    def connect(self, name: str) -> Line:
        """Let the site connect, and say who it is."""
        line = Line(name)
        self.manager.handle_new_connection(line)
        self.say_hello(line)
        return line

    def say_hello(self, line: Line) -> None:
        """Let the site say who it is."""
        self.manager.update_endpoint(self.manager.sfm_conns[line.name], {"endpoint_name": SITE})

    @property
    def reaches_site(self) -> bool:
        """Whether FLARE would send the site a message."""
        found = self.manager.find_endpoint(SITE)
        return (
            found is not None and found.state == EndpointState.READY and self.told[-1] == EndpointState.READY
        )


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.manager.conn_mgr_executor.shutdown(False)
    made.manager.frame_mgr_executor.shutdown(False)


def beside(act: Callable[[], None]) -> threading.Thread:
    """Do it in another thread, which gets a moment before this one goes on."""
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(0.3)
    return thread


def test_the_old_connection_ends_while_the_new_one_takes_its_place(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = server.connect("old")
    threads: list[threading.Thread] = []

    def evicted(_: str) -> None:
        threads.append(beside(lambda: server.manager.close_connection(old)))

    # FLARE has removed the old one from its list now, and has not added the new one.
    monkeypatch.setattr(sfm_endpoint.log, "info", evicted)
    server.connect("new")
    threads[0].join(10)
    assert server.reaches_site


def test_the_new_connection_comes_while_the_end_of_the_old_one_is_noted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = server.connect("old")
    new = Line("new")
    server.manager.handle_new_connection(new)
    threads: list[threading.Thread] = []
    remove, add = SfmEndpoint.remove_connection, SfmEndpoint.add_connection
    gone = threading.Event()
    server.on_gone = gone.set

    def removing(endpoint: SfmEndpoint, connection: SfmConnection) -> None:
        remove(endpoint, connection)
        threads.append(beside(lambda: server.say_hello(new)))

    def adding(endpoint: SfmEndpoint, connection: SfmConnection) -> None:
        assert gone.wait(10)
        add(endpoint, connection)

    monkeypatch.setattr(SfmEndpoint, "remove_connection", removing)
    monkeypatch.setattr(SfmEndpoint, "add_connection", adding)
    server.manager.close_connection(old)
    threads[0].join(10)
    assert server.reaches_site


def test_an_end_that_is_none_of_these_is_told(server: Server) -> None:
    line = server.connect("line")
    assert server.reaches_site
    server.manager.close_connection(line)
    assert server.told == [EndpointState.READY, EndpointState.DISCONNECTED]
    server.connect("next")
    assert server.reaches_site
