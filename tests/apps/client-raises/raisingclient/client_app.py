"""The client: raises in fit."""

from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context


class RaisingClient(NumPyClient):
    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        raise RuntimeError("this ClientApp raises on purpose")


def client_fn(context: Context) -> Client:
    return RaisingClient().to_client()


app = ClientApp(client_fn=client_fn)
