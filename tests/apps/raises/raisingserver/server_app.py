"""The server: raises."""

from flwr.common import Context
from flwr.server import ServerApp, ServerAppComponents


def server_fn(context: Context) -> ServerAppComponents:
    raise RuntimeError("this ServerApp raises on purpose")


app = ServerApp(server_fn=server_fn)
