"""Dial the server or a relay: by IPv4 or IPv6, directly or through an HTTP proxy, within a time limit.

FLARE's TCP driver (nvflare 2.9.0) knows IPv4 only, no proxy, and no limit of time. Its HTTP driver knows no
proxy. Its gRPC driver goes by gRPC's own variables, and does not say why a proxy makes no tunnel.
`drivers/flowerbed_drivers.py` uses this module.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
from nvflare.fuel.f3.drivers import net_utils
from nvflare.fuel.f3.drivers.aio_http_driver import MAX_FRAME_SIZE, WS_PATH
from nvflare.fuel.f3.drivers.driver_params import DriverParams

from bridge.common import connect_through
from bridge.common.connect_through import Proxy
from bridge.common.errors import FlowerbedError
from bridge.common.server_address import ServerAddress
from bridge.flare import addresses, line_watch

SETTING = (connect_through.GATE, connect_through.VARIABLE, connect_through.PASSWORD)
ENVIRONMENT = {name: os.environ.get(name, "") for name in SETTING}
"""The setting, as this process got it. An inline SuperNode removes it from the process's variables."""

GRPC_PROXY = "grpc.http_proxy"
"""gRPC's option for the proxy of one channel. It comes before gRPC's variables."""

GIVEN = "flowerbed.address"
"""The parameter of a connector with the address that FLARE gave it."""

GRPC_SCHEMES = ("grpc", "grpcs")

DIALLED = Path("/tmp/health/dialled")
"""The file that tells a site's health check which port it is connected to. The second line is for `./site
status`: the address of the other end, which may be behind a proxy or gate."""


UNKNOWN = (7, 18, 19, 20, 21)
"""OpenSSL's codes for a certificate of another authority (`X509_V_ERR_...`)."""


class OpenedTLS(FlowerbedError, OSError):
    """The certificate that answers is not the federation's."""


def proxy_to(host: str) -> Proxy | None:
    """Return the proxy that leads to a host, or None if it is dialled directly.

    Raises:
        ValueError: the setting is no address of a proxy.
    """
    return connect_through.way({**os.environ, **ENVIRONMENT}, host)


def dial(host: str, port: int, context: ssl.SSLContext | None) -> socket.socket:
    """Return a connection to a host's port, in TLS if there is a context.

    Raises:
        OSError: there is none. For a proxy, the text says what to do.
        ValueError: the setting is no address of a proxy.
    """
    proxy = proxy_to(host)
    connection = connect_through.connect(host, port, proxy)
    try:
        if context:
            # With this name the other end, or what is in between, knows whom the caller wants (SNI).
            connection = context.wrap_socket(connection, server_hostname=host)
        connection.settimeout(None)
    except ssl.SSLCertVerificationError as error:
        connection.close()
        if error.verify_code not in UNKNOWN:
            raise
        raise OpenedTLS(
            f"another authority than the federation's has signed the certificate of {host}:{port} "
            f"({error.verify_message}). A firewall that opens TLS does that. Ask for an exception for this "
            "name, or check that it leads to the server"
        ) from None
    except BaseException:
        connection.close()
        raise
    tell_health_check(host, port, proxy)
    return connection


def check_proxy(host: str, port: int) -> Proxy | None:
    """Return the proxy that leads to a host, after it has made a tunnel, for a library that does not say why
    there is none.

    Raises:
        OSError: there is none. The text says what to do.
        ValueError: the setting is no address of a proxy.
    """
    if proxy := proxy_to(host):
        connect_through.connect(host, port, proxy).close()
    return proxy


def tell_health_check(host: str, port: int, proxy: Proxy | None) -> None:
    """Write down the port that this container is connected to, and the address of the other end."""
    if host in connect_through.LOOPBACK:
        return
    # Without a container there is no such folder, and no health check.
    with contextlib.suppress(OSError):
        draft = DIALLED.with_name(f"{DIALLED.name}.{os.getpid()}")
        draft.write_text(f"{proxy.port if proxy else port}\n{ServerAddress(host, port)}\n")
        draft.replace(DIALLED)


def target(connector: Any) -> tuple[str, int]:
    """Return the host and the port that a connector leads to, where the other end is today."""
    params = connector.params
    given = ServerAddress(params[DriverParams.HOST.value], int(params[DriverParams.PORT.value]))
    # FLARE dials, and shows, what is in the parameters.
    given = params.setdefault(GIVEN, given)

    def answers(address: ServerAddress) -> None:
        context = net_utils.get_ssl_context(params, ssl_server=False)
        if context and params.get(DriverParams.SCHEME.value) in GRPC_SCHEMES:
            context.set_alpn_protocols(["h2"])
        dial(address.host, address.port, context).close()

    chosen = addresses.ADDRESSES.choose(given, answers)
    params[DriverParams.HOST.value], params[DriverParams.PORT.value] = chosen.host, chosen.port
    return chosen


class HttpDialling:
    """The dialling part of FLARE's HTTP driver, with a proxy."""

    aio_context: Any
    connector: Any
    ssl_context: Any

    def connect(self, connector: Any) -> None:
        """See `Driver.connect`."""
        self.connector = connector
        self.ssl_context = net_utils.get_ssl_context(connector.params, False)
        host, port = target(connector)
        proxy = check_proxy(host, port)
        tell_health_check(host, port, proxy)
        self.aio_context.run_coro(self._dial(host, port, proxy)).result()

    async def _dial(self, host: str, port: int, proxy: Proxy | None) -> None:
        url = f"{'wss' if self.ssl_context else 'ws'}://{host}:{port}/{WS_PATH}"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(
                url,
                ssl=self.ssl_context or True,
                proxy=proxy.url if proxy else None,
                max_msg_size=MAX_FRAME_SIZE,
                # Closed if no answer to a PING comes in half of that time, nor anything else.
                heartbeat=line_watch.silent_after(),
            ) as websocket,
        ):
            await self._connection_handler(websocket)  # type: ignore[attr-defined]


class GrpcDialling:
    """The dialling part of FLARE's gRPC driver, with the same proxy."""

    options: Any

    def connect(self, connector: Any) -> None:
        """See `Driver.connect`."""
        host, port = target(connector)
        proxy = check_proxy(host, port)
        tell_health_check(host, port, proxy)
        others = [option for option in self.options or [] if option[0] != GRPC_PROXY]
        self.options = [*others, (GRPC_PROXY, proxy.url)] if proxy else others
        super().connect(connector)  # type: ignore[misc]
