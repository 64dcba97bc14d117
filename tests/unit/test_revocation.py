"""The file of removed names is read as it changes, and a broken one lets nobody new in."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.communicator import driver_mgr
from nvflare.fuel.f3.drivers.connector_info import Mode
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellMessageHeaderKeys, ClientType
from nvflare.private.fed.server.client_manager import ClientManager

from bridge.common.meta import REVOKED_FILE
from bridge.flare import flare_server, peers, revocation, site_messages
from bridge.flare.revocation import Revoked
from tests.unit.connecting import driver

flowerbed_drivers = driver("flowerbed_drivers")
Admitting: Any = flowerbed_drivers.Admitting


@pytest.fixture(autouse=True)
def _looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "READ_EVERY", 0.0)


def revoke(folder: Path, *names: str) -> None:
    beside = folder / "beside"
    beside.write_text(json.dumps({"revoked": names}))
    beside.rename(folder / REVOKED_FILE)


def test_the_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    revoke(tmp_path)
    revoked = Revoked(tmp_path)
    assert revoked.why_not("site-1") is None
    revoke(tmp_path, "site-1")
    assert revoked.why_not("site-1") == revocation.REVOKED and revoked.removed("site-1")
    assert revoked.why_not("site-2") is None
    assert not revoked.removed("site-1", for_at_least=60)
    revoke(tmp_path)
    assert revoked.why_not("site-1") is None and not revoked.removed("site-1")


def test_without_the_folder_no_name_is_revoked(tmp_path: Path) -> None:
    assert Revoked(tmp_path / "none").why_not("site-1") is None


def test_a_relay_without_the_folder_takes_the_names_from_the_server(tmp_path: Path) -> None:
    relay = Revoked(tmp_path / "none")
    relay.tell(["site-2"])
    assert relay.why_not("site-2") == revocation.REVOKED and relay.why_not("site-1") is None
    assert relay.removed("site-2") and relay.names() == ["site-2"]


def test_what_the_server_says_does_not_replace_the_file(tmp_path: Path) -> None:
    (tmp_path / REVOKED_FILE).write_text('{"revoked": ["site-2"]}')
    relay = Revoked(tmp_path)
    relay.tell(["site-1"])
    assert relay.names() == ["site-2"]


def test_a_removed_key_is_out_whatever_its_name(tmp_path: Path) -> None:
    revoked, key, other = Revoked(tmp_path), "sha256:" + "a" * 64, "sha256:" + "b" * 64
    revoke(tmp_path, "site-1")
    assert revoked.why_not_key(key) is None and revoked.why_not_key("") is None
    revoke(tmp_path, key)
    assert revoked.why_not_key(key) == revocation.KEY_REMOVED and revoked.removed(key)
    assert revoked.why_not_key(other) is None and revoked.why_not("site-1") is None
    # One that cannot be read may be the removed one.
    assert revoked.why_not_key("") == revocation.KEY_REMOVED
    relay = Revoked(tmp_path / "none")
    relay.tell(revoked.names())
    assert relay.why_not_key(key) == revocation.KEY_REMOVED and relay.why_not_key(other) is None


@pytest.mark.parametrize("told", [{"revoked": "site-2"}, {"revoked": [1]}, {"revoked": None}])
def test_a_relay_refuses_what_is_no_list_of_names(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="revoked"):
        revocation.take(told, None)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"revoked": "site-1"}', '{"revoked": [1]}'])
def test_a_broken_file_admits_no_new_connection(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    revoke(tmp_path, "site-1")
    revoked = Revoked(tmp_path)
    assert revoked.why_not("site-2") is None
    (tmp_path / REVOKED_FILE).unlink()
    if content is not None:
        (tmp_path / REVOKED_FILE).write_text(content)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert "Run ./flowerbed provision" in str(revoked.why_not("site-2"))
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert revoked.removed("site-1") and not revoked.removed("site-2")
    revoke(tmp_path)
    assert revoked.why_not("site-2") is None


def test_the_revoked_neither_register_nor_beat_nor_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    revoke(policy, "site-1", "lead@flowerbed.example")
    for module in (site_messages, flare_server):
        monkeypatch.setattr(module, "REVOCATIONS", Revoked(policy))
    manager = ClientManager("project")
    manager.set_disabled_clients_file(str(tmp_path / "disabled.json"))
    manager.disable_client("site-2")
    server: Any = SimpleNamespace(
        client_manager=manager,
        client_heartbeat=lambda request: make_reply(ReturnCode.OK, "", None),
        register_client=lambda request: make_reply(ReturnCode.OK, "", None),
    )
    engine: Any = SimpleNamespace(server=server, job_runner=None, get_component=lambda name: None)
    flare = flare_server.FlareServer(engine)
    told = site_messages.SiteMessages(flare, server, None, lambda *words: None, lambda *words: None)

    def comes_in(name: str, kind: str = ClientType.REGULAR) -> list[bool]:
        headers = {CellMessageHeaderKeys.CLIENT_NAME: name, CellMessageHeaderKeys.CLIENT_TYPE: kind}
        asked = (told.register,) if kind == ClientType.ADMIN else (told.register, told.heartbeat)
        answers = [call(Message(dict(headers), None)) for call in asked]
        return [answer.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.OK for answer in answers]

    manager.name_to_clients["site-1"] = object()  # It is registered.
    assert comes_in("site-1") == [False, False] and comes_in("site-3") == [True, True]
    assert comes_in("lead@flowerbed.example", ClientType.ADMIN) == [False]
    assert comes_in("admin@flowerbed.example", ClientType.ADMIN) == [True]
    assert [flare.out(name) for name in ("site-1", "site-2", "site-3")] == [
        revocation.REVOKED,
        revocation.DISABLED,
        None,
    ]
    # A broken file turns away only who is not there.
    (policy / REVOKED_FILE).write_text("{")
    manager.name_to_clients["site-3"] = object()
    assert comes_in("site-3") == [True, True] and comes_in("site-4") == [False, False]
    assert flare.out("site-1") == revocation.REVOKED and flare.out("site-4") is None


class Line:
    """Open a connection over mutual TLS, as `name`."""

    def __init__(self, name: str, mode: Mode = Mode.PASSIVE, key: str = "") -> None:
        self.closed = False
        peers._keys[self] = key
        params = {DriverParams.SCHEME.value: "stcp", DriverParams.SECURE.value: True}
        self.connector = SimpleNamespace(mode=mode, params=params)
        self.name = name

    def get_conn_properties(self) -> dict[str, Any]:
        return {DriverParams.PEER_CN.value: self.name}

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    revoke(tmp_path, "site-1")
    monkeypatch.setattr(flowerbed_drivers, "REVOCATIONS", Revoked(tmp_path))
    return tmp_path


@pytest.mark.parametrize("scheme", ["grpc", "grpcs", "agrpc", "tcp", "stcp", "http", "https", "satcp"])
def test_each_of_flares_drivers_looks_who_connects(scheme: str) -> None:
    # Compare names: FLARE loads the folder's modules itself, beside the copy that this test imports.
    assert "Admitting" in {kind.__name__ for kind in driver_mgr.find_driver_class(scheme).__mro__}


class Driver(Admitting):  # type: ignore[misc]
    """An imitation of FLARE's, without a network."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.register_conn_monitor(SimpleNamespace(state_change=lambda conn: self.told.append(conn.name)))

    listen = connect = shutdown = supported_transports = capabilities = get_urls = None


def test_a_revoked_name_cannot_connect(policy: Path) -> None:
    line, other, driver = Line("site-1"), Line("site-2"), Driver()
    with pytest.raises(CommError, match="site-1 may not connect"):
        driver.add_connection(line)
    driver.close_connection(line)  # As gRPC's driver does in any case.
    assert line.closed and not driver.connections and not driver.told
    driver.add_connection(other)
    assert not other.closed and driver.told == ["site-2"]
    # A site that dials looks at nobody.
    driver.add_connection(Line("site-1", Mode.ACTIVE))


def test_a_connection_is_closed_when_its_name_is_revoked(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flowerbed_drivers, "CLOSE_AFTER", 0.1)
    first, second, driver = Line("site-2"), Line("site-3"), Driver()
    for line in (first, second):
        driver.add_connection(line)
    revoke(policy, "site-1", "site-2")
    flowerbed_drivers.close_removed(driver)
    assert not first.closed, "it has had no time to hear that it is put out"
    time.sleep(0.15)
    flowerbed_drivers.close_removed(driver)
    assert first.closed and not second.closed


def test_a_connection_is_closed_when_its_key_is_removed(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flowerbed_drivers, "CLOSE_AFTER", 0.0)
    keys = ["sha256:" + letter * 64 for letter in "ab"]
    first, second, driver = Line("site-2", key=keys[0]), Line("site-3", key=keys[1]), Driver()
    for line in (first, second):
        driver.add_connection(line)
    revoke(policy, keys[0])
    flowerbed_drivers.close_removed(driver)
    assert first.closed and not second.closed
