"""Find out who is at the other end of a connection. For nvflare 2.9.0."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from nvflare.fuel.f3.cellnet.identity import is_mtls_connection
from nvflare.fuel.f3.drivers.connector_info import Mode
from nvflare.fuel.f3.drivers.driver_params import DriverParams

from bridge.common import removed_keys

_keys: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""The entries of open connections."""


def name(conn: Any) -> str | None:
    """Return the name in the certificate of the other end of a mutual TLS connection to this process."""
    connector = conn.connector
    if connector.mode != Mode.PASSIVE or not is_mtls_connection(connector.params):
        return None
    found = (conn.get_conn_properties() or {}).get(DriverParams.PEER_CN.value)
    return str(found) if found else None


def is_dialled(conn: Any) -> bool:
    """Return whether this process has dialled the other end of a mutual TLS connection."""
    connector = conn.connector
    return bool(connector.mode == Mode.ACTIVE and is_mtls_connection(connector.params))


def key(conn: Any) -> str:
    """Return the entry of the other end's key in the list of revoked names, or "" if it cannot be read.

    It is read once, while the connection is open.
    """
    found = _keys.get(conn)
    if found is None:
        found = _keys[conn] = _key(conn)
    return found


def _key(conn: Any) -> str:
    if (context := getattr(conn, "context", None)) is not None:  # gRPC
        (pem,) = context.auth_context().get("x509_pem_cert") or (b"",)
        return _entry(pem)
    transport = getattr(conn, "websocket", None) or getattr(conn, "writer", None)
    return key_of_tls(transport.get_extra_info("ssl_object") if transport else getattr(conn, "sock", None))


def key_of_tls(tls: Any) -> str:
    """Return the entry of the other end's key, by a TLS socket of Python's."""
    try:
        return _entry(tls.getpeercert(binary_form=True) or b"")
    except (AttributeError, OSError, TypeError, ValueError):
        return ""  # It is closed, or no TLS.


def _entry(certificate: bytes) -> str:
    try:
        return removed_keys.of_certificate(certificate)
    except ValueError:
        return ""
