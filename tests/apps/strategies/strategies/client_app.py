"""The client: its points lie around its own place, and it moves from the server's point to their middle."""

import numpy as np
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context

RATE = 0.1


class WalkingClient(NumPyClient):
    def __init__(self, points):  # noqa: ANN001, ANN204
        self.points = points

    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        beginning = parameters[0]
        place = beginning.copy()
        # FedProx asks clients to stay near the place from which they set out.
        pull_back = float(config.get("proximal_mu", 0.0))
        for point in self.points:
            place -= RATE * (place - point + pull_back * (place - beginning))
        return [place], len(self.points), {"train_loss": self.loss(place)}

    def evaluate(self, parameters, config):  # noqa: ANN001, ANN201
        distances = np.linalg.norm(self.points - parameters[0], axis=1)
        return self.loss(parameters[0]), len(self.points), {"far": float(np.mean(distances > 2))}

    def loss(self, place):  # noqa: ANN001, ANN201
        return float(np.mean((self.points - place) ** 2))


def client_fn(context: Context) -> Client:
    site = int(context.node_config["partition-id"])
    random = np.random.default_rng([int(context.run_config["seed"]), site])
    return WalkingClient(random.normal(site + 1, 1.0, (10 + 5 * site, 2))).to_client()


app = ClientApp(client_fn=client_fn)
