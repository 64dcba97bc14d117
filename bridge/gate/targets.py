"""Know the addresses that the site dials, and dial them. No other address is ever dialled."""

from __future__ import annotations

import logging
import os
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path

from bridge.common import connect_through, server_address
from bridge.common.connect_through import ProxyError
from bridge.common.server_address import ServerAddress

log = logging.getLogger(__name__)

RENEWED = Path("/renewed")
"""The folder with the address of a server that has moved, and the federation's CAs."""


class Targets:
    """The kit's address, and today's if the server or relay has moved since."""

    def __init__(
        self, of_kit: ServerAddress, renewed: Path = RENEWED, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._of_kit, self._renewed, self._environment = of_kit, renewed, environment
        self._proven: set[tuple[ServerAddress, str]] = set()
        """Where the federation answers: each address, with the IP address or the proxy that it led to."""

    def find(self, asked: str) -> ServerAddress | None:
        """Return the address that is asked for, as HOST:PORT, or None if the site does not dial it."""
        known = (self._of_kit, self._today())
        return next((one for one in known if one is not None and str(one).lower() == asked.lower()), None)

    def dial(self, address: ServerAddress) -> socket.socket:
        """Return a connection to an address that `find` has returned.

        Raises:
            OSError: there is none. The text is for the site's log.
        """
        try:
            proxy = connect_through.chosen(self._environment, address.host)
            while True:
                line = connect_through.connect(address.host, address.port, proxy)
                found = (address, str(line.getpeername()[0]))
                if address == self._of_kit and address not in {known for known, _ in self._proven}:
                    # The site's FLARE says best what is wrong with who answers first.
                    self._proven.add(found)
                if found in self._proven:
                    return line
                self._prove(address, line)
                self._proven.add(found)
        except (ProxyError, ValueError) as error:
            raise ConnectionError(str(error)) from None
        except OSError as error:
            raise ConnectionError(f"{address} cannot be reached: {connect_through.why(error)}") from None

    def _today(self) -> ServerAddress | None:
        try:
            return server_address.of_file(self._renewed / server_address.FILE)
        except ValueError as error:
            log.warning("%s is ignored: %s", server_address.FILE, error)
            return None

    def _prove(self, address: ServerAddress, line: socket.socket) -> None:
        """Check that the federation's server or relay answers at a newer address, or where a name leads now.

        Its name is in a certificate of the federation (`bridge/keeper/address.py`). Its port may be anybody's
        choice, since the site's container hands the address to the keeper. And who controls the name could
        lead it to a machine of the hospital's network.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self._renewed / "rootCA.pem")
        # A gRPC server answers nobody who does not ask for this. Others do not care.
        context.set_alpn_protocols(["h2"])
        try:
            with line, context.wrap_socket(line, server_hostname=address.host):
                pass
        except ssl.SSLError:
            raise ProxyError(f"nobody with the federation's certificate answers at {address}") from None
