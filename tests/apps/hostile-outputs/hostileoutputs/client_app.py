"""The client: hostile in all that it says, honest in what it learns."""

import sys
import time

from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context

from hostileoutputs import ESCAPE, FORMULA, KEYS, OUTSIDE, fill


class Hostile(NumPyClient):
    def __init__(self, config):  # noqa: ANN001, ANN204
        self.config = config

    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        log_points()
        for _ in range(int(self.config["log-lines"])):
            print("x" * 1000)
        sys.stdout.write(ESCAPE)
        sys.stdout.flush()
        fill(int(self.config["client-files"]))
        time.sleep(float(self.config["train-seconds"]))
        return parameters, 10, {ESCAPE: 0.5, FORMULA: 0.25, "accuracy": 0.75}

    def evaluate(self, parameters, config):  # noqa: ANN001, ANN201
        return 0.5, 10, {FORMULA: 0.25, ESCAPE: 0.5}


def log_points():  # noqa: ANN201
    """Log points with FLARE's own writer, if it is there."""
    try:
        from nvflare.client import tracking
    except ImportError:
        return
    tracking.init()
    writer = tracking.SummaryWriter()
    writer.add_scalars("many", {f"k{number}": 1.0 for number in range(KEYS)}, global_step=1)
    for number in range(100):
        writer.add_scalars(f"run {number}", {"key": 1.0}, global_step=1)
    writer.add_scalars("x", {OUTSIDE: 1.0}, global_step=1)
    writer.add_scalar(ESCAPE, 1.0, global_step=1)
    writer.add_scalar("good", 1.0, global_step=1)
    tracking.shutdown()


def client_fn(context: Context) -> Client:
    return Hostile(context.run_config).to_client()


app = ClientApp(client_fn=client_fn)
