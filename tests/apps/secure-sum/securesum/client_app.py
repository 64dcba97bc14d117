"""The client: it adds 1, 2, 3, ... and the mod masks that."""

import numpy as np
from flwr.client import Client, ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import Context


class MaskedClient(NumPyClient):
    def __init__(self, site, seed):  # noqa: ANN001, ANN204
        self.site, self.seed = site, seed

    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        # SecAgg+ rounds to whole numbers, up or down by numpy's generator.
        np.random.seed([self.seed, self.site])
        return [parameters[0] + self.site + 1], 100 * (self.site + 1), {}

    def evaluate(self, parameters, config):  # noqa: ANN001, ANN201
        mean = float(np.mean(parameters[0]))
        return mean, 10, {"mean": mean}


def client_fn(context: Context) -> Client:
    site = int(context.node_config["partition-id"])
    return MaskedClient(site, int(context.run_config["seed"])).to_client()


app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
