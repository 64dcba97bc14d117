"""Ends of FLARE's connections, and what FLARE loads before it opens one."""

from __future__ import annotations

import importlib
import queue
import sys
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.communicator import Communicator, Mode
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.endpoint import Endpoint, EndpointMonitor, EndpointState
from nvflare.fuel.f3.message import Message, MessageReceiver

from scripts.core import ROOT

APP = 7
"""The number of an application's messages."""


def driver(name: str) -> Any:
    """Return a module of `bridge/flare/drivers`, under the name with which FLARE imports that folder's
    modules.

    Under its name in the package it would be a second copy, and change again what the first has changed.
    """
    folder = str(ROOT / "bridge" / "flare" / "drivers")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


class End(MessageReceiver, EndpointMonitor):  # type: ignore[misc]
    """One end of a FLARE connection."""

    def __init__(self, kit: Path, url: str, mode: Mode) -> None:
        role = "server" if mode == Mode.PASSIVE else "client"
        credentials = {
            DriverParams.CA_CERT.value: str(kit / "startup" / "rootCA.pem"),
            f"{role}_cert": str(kit / "startup" / f"{role}.crt"),
            f"{role}_key": str(kit / "startup" / f"{role}.key"),
            DriverParams.CONNECTION_SECURITY.value: "mtls",
        }
        self.came: queue.Queue[Message] = queue.Queue()
        self.peers: queue.Queue[Endpoint] = queue.Queue()
        self.communicator = Communicator(Endpoint(kit.name, conn_props=credentials))
        self.communicator.register_message_receiver(APP, self)
        self.communicator.register_monitor(self)
        self.communicator.add_connector(url, mode, secure=True)
        self.communicator.start()

    def process_message(self, endpoint: Any, connection: Any, app_id: int, message: Message) -> None:
        self.came.put(message)

    def state_change(self, endpoint: Endpoint) -> None:
        if endpoint.state == EndpointState.READY:
            self.peers.put(endpoint)
