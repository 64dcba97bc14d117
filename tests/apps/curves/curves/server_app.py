"""The server: FedAvg over all sites."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


def server_fn(context: Context) -> ServerAppComponents:
    strategy = FedAvg(
        min_available_clients=int(context.run_config["min-available-clients"]),
        initial_parameters=ndarrays_to_parameters([np.zeros(10, dtype=np.float32)]),
    )
    rounds = int(context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
