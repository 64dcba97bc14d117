"""FLARE's connections are not for those who were removed. For nvflare 2.9.0.

FLARE imports this as it does its neighbour, in each of its processes. Others connect to the server and to
relays over mutual TLS, whatever the scheme. When such a connection says which cell it is, the name in its
certificate must not be revoked (`bridge/flare/revocation.py`). A connection that is open when its name is
revoked is closed a few seconds later. Until then the site is put out of its jobs, and can hear so.

`tests/unit/test_internals.py` fails when nvflare changes what is used here.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from nvflare.fuel.f3.cellnet.identity import is_mtls_connection
from nvflare.fuel.f3.comm_error import CommError
from nvflare.fuel.f3.drivers.connector_info import Mode
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.sfm import conn_manager
from nvflare.fuel.sec.audit import AuditService

from bridge.flare.revocation import REVOCATIONS, REVOKED

log = logging.getLogger(__name__)

CLOSE_AFTER = 5.0
"""Seconds for which a connection stays open after its name was revoked."""

LOOK_EVERY = 2.0
"""Seconds from one look at the open connections to the next."""

TOLD_EVERY = 3600.0
"""Seconds from one line in the audit log about a name to the next: a site that was removed goes on trying."""

_update_endpoint = conn_manager.ConnManager.update_endpoint
_managers: list[Any] = []
_lock = threading.Lock()
_told: dict[str, float] = {}


def _check(self: Any, sfm_conn: Any, data: dict[str, Any]) -> None:
    """`ConnManager.update_endpoint`, which is called once the other end has said which cell it is."""
    name = _peer(sfm_conn)
    if name is not None:
        if why := REVOCATIONS.why_not(name):
            _audit(name, f"connection refused: {why}")
            sfm_conn.conn.close()
            raise CommError(CommError.BAD_DATA, f"{name} may not connect: {why}")
        _watch(self)
    _update_endpoint(self, sfm_conn, data)


def _peer(sfm_conn: Any) -> str | None:
    """The name in the certificate of whoever has connected over mutual TLS to this process."""
    connector = sfm_conn.conn.connector
    if connector.mode != Mode.PASSIVE or not is_mtls_connection(connector.params):
        return None
    name = (sfm_conn.conn.get_conn_properties() or {}).get(DriverParams.PEER_CN.value)
    return str(name) if name else None


def _audit(name: str, text: str) -> None:
    now = time.monotonic()
    if now - _told.get(name, float("-inf")) > TOLD_EVERY:
        _told[name] = now
        AuditService.add_event(user=name, action="flower.revoked", msg=text)


def _watch(manager: Any) -> None:
    """Begin to look at the connections of a manager."""
    with _lock:
        if manager in _managers:
            return
        _managers.append(manager)
        if len(_managers) == 1:
            threading.Thread(target=_keep_closing, name="flowerbed-revoked", daemon=True).start()


def _keep_closing() -> None:
    while True:
        time.sleep(LOOK_EVERY)
        for manager in list(_managers):
            try:
                close_removed(manager)
            except Exception:
                log.exception("the connections of those who were removed could not be looked at")


def close_removed(manager: Any) -> None:
    """Close the connections of those who were revoked a while ago."""
    for sfm_conn in list(manager.sfm_conns.values()):
        name = _peer(sfm_conn)
        if name is not None and REVOCATIONS.removed(name, CLOSE_AFTER):
            log.warning("closed a connection of %s: %s", name, REVOKED)
            AuditService.add_event(user=name, action="flower.revoked", msg="connection closed")
            sfm_conn.conn.close()


conn_manager.ConnManager.update_endpoint = _check
