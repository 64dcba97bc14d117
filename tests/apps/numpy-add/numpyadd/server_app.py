"""The server: FedAvg. After N rounds every number in final_model.npy has grown by N."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from numpyadd import beginning


class SaveFinalModel(FedAvg):
    def aggregate_fit(self, server_round, results, failures):  # noqa: ANN001, ANN201
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        if parameters is not None:
            np.save("final_model.npy", parameters_to_ndarrays(parameters)[0])
        return parameters, metrics


def server_fn(context: Context) -> ServerAppComponents:
    strategy = SaveFinalModel(
        min_fit_clients=1,
        min_evaluate_clients=1,
        fraction_evaluate=float(context.run_config["fraction-evaluate"]),
        min_available_clients=int(context.run_config["min-available-clients"]),
        initial_parameters=ndarrays_to_parameters([beginning(int(context.run_config["array-size"]))]),
    )
    rounds = int(context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
