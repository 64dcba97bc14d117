"""The server: the strategy that the run config names, as Flower has it."""

from functools import partial

import numpy as np
from flwr.common import Context, Metrics, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAdam, FedAvg, FedMedian, FedProx

STRATEGIES = {
    "FedAvg": FedAvg,
    "FedProx": partial(FedProx, proximal_mu=0.5),
    "FedAdam": partial(FedAdam, eta=0.5),
    "FedMedian": FedMedian,
}


def weighted_average(metrics: list[tuple[int, Metrics]]) -> Metrics:
    examples = sum(number for number, _ in metrics)
    return {"far": sum(number * float(one["far"]) for number, one in metrics) / examples}


def server_fn(context: Context) -> ServerAppComponents:
    clients = int(context.run_config["min-available-clients"])
    strategy = STRATEGIES[str(context.run_config["strategy"])](
        min_fit_clients=clients,
        min_evaluate_clients=clients,
        min_available_clients=clients,
        initial_parameters=ndarrays_to_parameters([np.zeros(2)]),
        evaluate_metrics_aggregation_fn=weighted_average,
    )
    rounds = int(context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
