"""The client: adds 1 and reports what was added so far, on average, as its loss: a lost or doubled addition
shows."""

import time

import numpy as np
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context

from numpyadd import beginning

EXAMPLES = 10


class AddingClient(NumPyClient):
    def __init__(self, seconds):  # noqa: ANN001, ANN204
        self.seconds = seconds

    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        time.sleep(self.seconds)
        return (
            [array + 1 for array in parameters],
            EXAMPLES,
            {"train_loss": added(parameters[0]) + 1},
        )

    def evaluate(self, parameters, config):  # noqa: ANN001, ANN201
        mean = added(parameters[0])
        return mean, EXAMPLES, {"mean": mean}


def added(numbers):  # noqa: ANN001, ANN201
    return float(np.mean(numbers - beginning(numbers.size)))


def client_fn(context: Context) -> Client:
    return AddingClient(float(context.run_config["train-seconds"])).to_client()


app = ClientApp(client_fn=client_fn)
