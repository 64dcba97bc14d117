"""A client that is never asked."""

from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context


def client_fn(context: Context) -> Client:
    return NumPyClient().to_client()


app = ClientApp(client_fn=client_fn)
