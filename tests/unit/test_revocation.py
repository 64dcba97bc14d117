"""Who was removed: the file is read as it changes, and one that is broken lets nobody new in."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers.connector_info import Mode
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.sfm.conn_manager import ConnManager
from nvflare.private.fed.server.client_manager import ClientManager

from bridge.flare import revocation
from bridge.flare.revocation import Barred, Revoked
from tests.unit.connecting import driver

flowerbed_revoked = driver("flowerbed_revoked")


@pytest.fixture(autouse=True)
def _looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "READ_EVERY", 0.0)


def revoke(folder: Path, *names: str) -> None:
    beside = folder / "beside"
    beside.write_text(json.dumps({"revoked": names}))
    beside.rename(folder / revocation.FILE)


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


def test_without_the_folder_nobody_is_revoked(tmp_path: Path) -> None:
    assert Revoked(tmp_path / "none").why_not("site-1") is None


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"revoked": "site-1"}', '{"revoked": [1]}'])
def test_a_broken_file_lets_nobody_new_in(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    revoke(tmp_path, "site-1")
    revoked = Revoked(tmp_path)
    assert revoked.why_not("site-2") is None
    (tmp_path / revocation.FILE).unlink()
    if content is not None:
        (tmp_path / revocation.FILE).write_text(content)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert "Run ./flowerbed provision" in str(revoked.why_not("site-2"))
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert revoked.removed("site-1") and not revoked.removed("site-2")
    revoke(tmp_path)
    assert revoked.why_not("site-2") is None


def test_flare_takes_the_revoked_for_disabled(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    revoke(policy)
    manager = ClientManager("project")
    manager.set_disabled_clients_file(str(tmp_path / "disabled.json"))
    barred = Barred(Revoked(policy))
    barred.here = manager.name_to_clients
    manager.disabled_clients = barred
    manager.disable_client("site-2")
    manager.name_to_clients["site-1"] = object()  # It is registered.
    revoke(policy, "site-1", "lead@flowerbed.example")
    for name in ("site-1", "site-2", "lead@flowerbed.example"):
        assert manager.is_client_disabled(name)
    assert not manager.is_client_disabled("site-3")
    assert (barred.out("site-1"), barred.out("site-2"), barred.out("site-3")) == (
        revocation.REVOKED,
        revocation.DISABLED,
        None,
    )
    # enable_client undoes what FLARE has done, and not what the operator has.
    manager.enable_client("site-1")
    manager.enable_client("site-2")
    assert manager.is_client_disabled("site-1") and not manager.is_client_disabled("site-2")
    assert json.loads((tmp_path / "disabled.json").read_text()) == {"disabled_clients": []}
    # A broken file turns away only who is not there.
    (policy / revocation.FILE).write_text("{")
    manager.name_to_clients["site-3"] = object()
    assert not manager.is_client_disabled("site-3") and manager.is_client_disabled("site-4")


class Line:
    """A connection over mutual TLS, of `name`."""

    def __init__(self, name: str, mode: Mode = Mode.PASSIVE) -> None:
        self.closed = False
        params = {DriverParams.SCHEME.value: "stcp", DriverParams.SECURE.value: True}
        self.connector = SimpleNamespace(mode=mode, params=params)
        self._name = name
        self.conn = self

    def get_conn_properties(self) -> dict[str, Any]:
        return {DriverParams.PEER_CN.value: self._name}

    def get_name(self) -> str:
        return self._name

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    revoke(tmp_path, "site-1")
    monkeypatch.setattr(flowerbed_revoked, "REVOCATIONS", Revoked(tmp_path))
    monkeypatch.setattr(flowerbed_revoked, "_update_endpoint", lambda *words: None)
    return tmp_path


def test_flare_asks_when_a_connection_says_who_it_is() -> None:
    # By its name: FLARE loads the folder's modules itself, beside the copy that this test imports.
    assert ConnManager.update_endpoint.__qualname__ == flowerbed_revoked._check.__qualname__
    assert ConnManager.update_endpoint.__module__ == "flowerbed_revoked"


def test_a_revoked_name_cannot_connect(policy: Path) -> None:
    line, other = Line("site-1"), Line("site-2")
    manager = SimpleNamespace(sfm_conns={"a": line, "b": other})
    with pytest.raises(CommError, match="site-1 may not connect"):
        ConnManager.update_endpoint(manager, line, {})
    assert line.closed
    ConnManager.update_endpoint(manager, other, {})
    assert not other.closed
    # A site that dials looks at nobody.
    ConnManager.update_endpoint(manager, Line("site-1", Mode.ACTIVE), {})


def test_a_connection_is_closed_when_its_name_is_revoked(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flowerbed_revoked, "CLOSE_AFTER", 0.1)
    first, second = Line("site-2"), Line("site-3")
    manager = SimpleNamespace(sfm_conns={"a": first, "b": second})
    flowerbed_revoked.close_removed(manager)
    revoke(policy, "site-1", "site-2")
    flowerbed_revoked.close_removed(manager)
    assert not first.closed, "it has had no time to hear that it is put out"
    time.sleep(0.15)
    flowerbed_revoked.close_removed(manager)
    assert first.closed and not second.closed
