"""The client: raises in fit, or does what a container without a way out cannot: connect to `host`."""

import socket

from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context


class RaisingClient(NumPyClient):
    def __init__(self, host: str) -> None:
        self.host = host

    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        if self.host:
            socket.create_connection((self.host, 443), 10).close()
        raise RuntimeError("this ClientApp raises on purpose")


def client_fn(context: Context) -> Client:
    return RaisingClient(str(context.run_config["host"])).to_client()


app = ClientApp(client_fn=client_fn)
