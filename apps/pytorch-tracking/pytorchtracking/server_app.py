"""pytorch-tracking: the ServerApp, which averages the clients' models and keeps the last one."""

import torch
from flwr.common import Context, Metrics, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from pytorchtracking.task import Net, get_weights, set_weights


class SaveFinalModel(FedAvg):
    """FedAvg that writes the model of the last round to final_model.pt in the working directory."""

    def __init__(self, *, last_round: int, **kwargs) -> None:  # noqa: ANN003
        super().__init__(**kwargs)
        self.last_round = last_round

    def aggregate_fit(self, server_round, results, failures):  # noqa: ANN001, ANN201
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        if parameters is not None and server_round == self.last_round:
            save_model(parameters)
        return parameters, metrics


def save_model(parameters: Parameters) -> None:
    net = Net()
    set_weights(net, parameters_to_ndarrays(parameters))
    torch.save(net.state_dict(), "final_model.pt")


def weighted_average(metrics: list[tuple[int, Metrics]]) -> Metrics:
    """The mean of each metric over the clients, weighted by their numbers of examples."""
    total = sum(num_examples for num_examples, _ in metrics)
    names = sorted(set.intersection(*(set(m) for _, m in metrics)))
    return {name: sum(n * float(m[name]) for n, m in metrics) / total for name in names}


def server_fn(context: Context) -> ServerAppComponents:
    num_rounds = int(context.run_config["num-server-rounds"])
    lr = float(context.run_config["learning-rate"])

    torch.manual_seed(int(context.run_config["seed"]))
    initial_parameters = ndarrays_to_parameters(get_weights(Net()))

    strategy = SaveFinalModel(
        last_round=num_rounds,
        fraction_fit=float(context.run_config["fraction-fit"]),
        fraction_evaluate=float(context.run_config["fraction-evaluate"]),
        min_fit_clients=1,
        min_evaluate_clients=1,
        min_available_clients=int(context.run_config["min-available-clients"]),
        initial_parameters=initial_parameters,
        on_fit_config_fn=lambda server_round: {"lr": lr, "server-round": server_round},
        fit_metrics_aggregation_fn=weighted_average,
        evaluate_metrics_aggregation_fn=weighted_average,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=num_rounds))


app = ServerApp(server_fn=server_fn)
