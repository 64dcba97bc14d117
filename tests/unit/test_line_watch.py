"""A connection through a proxy is closed and dialled again when the line behind the proxy is dead."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.fuel.f3.communicator import Mode
from nvflare.fuel.f3.sfm import heartbeat_monitor

from bridge.common.connect_through import PASSWORD, VARIABLE
from bridge.common.ports import free_port
from bridge.flare import dialling, line_watch
from provisioning import harden
from tests.connect_proxy import ConnectProxy, serving
from tests.unit.connecting import End, driver
from tests.unit.faking import Authority

driver("flowerbed_drivers")

SERVER = "fl.hospital.example"


class Line:
    """A connection."""

    def __init__(self, heard: float, moved: float = 0.0) -> None:
        self.name, self.heard, self.moved, self.closed = "line", heard, moved, False

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("heard", "moved", "closed"), [(0, 0, True), (31, 0, False), (0, 31, False), (29, 29, True)]
)
def test_a_line_is_silent_if_no_byte_came_and_none_waited_to_go(
    heard: float, moved: float, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_watch, "LOOK_EVERY", 3600)
    watch, line = line_watch.Watch(), Line(heard, moved)
    watch.add(line, 70)
    watch.look(100, 70)
    assert line.closed is closed


def test_a_process_that_was_stopped_takes_no_line_for_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    line, clock, watch = Line(0), [0.0], line_watch.Watch()

    class Stop(Exception):
        pass

    def sleep(seconds: float) -> None:
        clock[0] += 500 if clock[0] == 0 else seconds
        if clock[0] > 510:
            raise Stop

    # The module's alone: the thread of another watch looks, too.
    monkeypatch.setattr(line_watch, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    watch._lines.add(line)
    looked: list[float] = []
    monkeypatch.setattr(watch, "look", lambda now, after: looked.append(now))
    with pytest.raises(Stop):
        watch._keep_looking(70)
    assert looked == [505.0, 510.0]


def test_kits_ask_for_signs_of_life_often_enough_for_a_load_balancer() -> None:
    config: dict[str, object] = {}
    harden._configure_transport(config)
    assert config["heartbeat_interval"] == harden.SIGN_OF_LIFE
    # Many close a connection after 50 s without a byte.
    assert harden.SIGN_OF_LIFE + 2 * heartbeat_monitor.HEARTBEAT_TICK < 50


def test_only_other_machines_are_watched() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
    ):
        assert not line_watch.is_remote(near)
    assert not line_watch.is_remote(near)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_watch, "WATCH", line_watch.Watch())
    monkeypatch.setattr(line_watch, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(line_watch, "is_remote", lambda connection: True)
    monkeypatch.setattr(line_watch, "silent_after", lambda: 1.5)


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Iterator[ConnectProxy]:
    proxy = ConnectProxy({SERVER: "127.0.0.1"})
    with serving(proxy.serve) as port:
        setting = {VARIABLE: f"http://127.0.0.1:{port}", PASSWORD: ""}
        monkeypatch.setattr(dialling, "ENVIRONMENT", setting)
        yield proxy
        proxy.drop()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_a_dead_line_behind_a_proxy_is_noticed_and_dialled_again(
    tmp_path: Path, through: ConnectProxy, scheme: str
) -> None:
    """The proxy keeps its connections open, and carries nothing more."""
    authority = Authority(names=("127.0.0.1", SERVER))
    authority.kit(tmp_path / "server", "server")
    authority.kit(tmp_path / "site-1", "client")
    port = free_port()
    listener = End(tmp_path / "server", f"{scheme}://0:{port}", Mode.PASSIVE)
    asker = End(tmp_path / "site-1", f"{scheme}://{SERVER}:{port}", Mode.ACTIVE)
    try:
        asker.peers.get(timeout=10)
        through.silence()
        began = time.monotonic()
        asker.peers.get(timeout=20)
        assert time.monotonic() - began > 1
        assert len(through.asked) >= 2
    finally:
        asker.communicator.stop()
        listener.communicator.stop()
