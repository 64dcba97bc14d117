"""The client: sleeps in place of training, and logs loss and accuracy of both kinds at each step."""

import time
from collections.abc import Iterator

from flwr.app import MetricRecord
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context
from nvflare.client import tracking


class Logging(NumPyClient):
    def __init__(self, context: Context) -> None:
        self.context = context

    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        time.sleep(float(self.context.run_config["train-seconds"]))
        return parameters, 10, {"train_loss": self.log("train")}

    def evaluate(self, parameters, config):  # noqa: ANN001, ANN201
        return self.log("validation"), 10, {}

    def log(self, what: str) -> float:
        """Log the next step of a kind, and return its loss, which differs by site, kind and step."""
        steps = self.context.state.setdefault("steps", MetricRecord())
        steps[what] = step = int(steps.get(what, 0)) + 1
        loss = (int(self.context.node_config["partition-id"]) + 1 + len(what) / 100) / step
        writer = tracking.SummaryWriter()
        writer.add_scalar(f"{what}/loss", loss, global_step=step)
        writer.add_scalar(f"{what}/accuracy", 1 / (1 + loss), global_step=step)
        return loss


def client_fn(context: Context) -> Client:
    return Logging(context).to_client()


app = ClientApp(client_fn=client_fn)


@app.lifespan()
def lifespan(context: Context) -> Iterator[None]:
    tracking.init()
    try:
        yield
    finally:
        tracking.shutdown()
