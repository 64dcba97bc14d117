"""The server: FedAvg, after it has filled its working directory if it is told to."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from hostileoutputs import fill


def average(metrics):  # noqa: ANN001, ANN201
    return {}


def server_fn(context: Context) -> ServerAppComponents:
    fill(int(context.run_config["server-files"]))
    strategy = FedAvg(
        min_fit_clients=1,
        min_evaluate_clients=1,
        min_available_clients=int(context.run_config["min-available-clients"]),
        initial_parameters=ndarrays_to_parameters([np.zeros(3, dtype=np.float32)]),
        fit_metrics_aggregation_fn=average,
        evaluate_metrics_aggregation_fn=average,
    )
    rounds = int(context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
