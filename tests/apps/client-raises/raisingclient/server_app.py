"""The server: FedAvg that takes a client's failure for its own, so that the run fails."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


class Strict(FedAvg):
    def aggregate_fit(self, server_round, results, failures):  # noqa: ANN001, ANN201
        if failures:
            raise RuntimeError(f"{len(failures)} clients failed in round {server_round}: {failures[0]}")
        return super().aggregate_fit(server_round, results, failures)


def server_fn(context: Context) -> ServerAppComponents:
    strategy = Strict(
        min_available_clients=int(context.run_config["min-available-clients"]),
        initial_parameters=ndarrays_to_parameters([np.zeros(10, dtype=np.float32)]),
    )
    rounds = int(context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
