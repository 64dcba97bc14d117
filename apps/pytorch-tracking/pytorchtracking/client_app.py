"""pytorch-tracking: the ClientApp, which trains and evaluates on a client's own data, and logs its curves.

What it has more than pytorch-quickstart: FLARE's `SummaryWriter`, which is used as PyTorch's own is. What
it writes arrives at the server while the job runs. Each message has a process of its own, so the writer's
way there is opened and closed around each (`lifespan`), and the step that was logged last is kept in the
context's state.
"""

import os
from collections.abc import Iterator

import torch
from flwr.app import MetricRecord
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context
from nvflare.client import tracking
from torch.utils.data import DataLoader

from pytorchtracking.task import Net, data_folder, get_weights, load_data, set_weights, test, train

TRACKED = "NVFLARE_ANALYTICS_BOOTSTRAP" in os.environ
"""FLARE says by it where a writer's points go to. In plain Flower nobody takes them."""


class FlowerClient(NumPyClient):
    def __init__(
        self,
        net: Net,
        trainloader: DataLoader,
        testloader: DataLoader,
        local_epochs: int,
        seed: int,
        context: Context,
    ) -> None:
        self.net = net
        self.trainloader = trainloader
        self.testloader = testloader
        self.local_epochs = local_epochs
        self.seed = seed
        self.context = context
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        torch.manual_seed(self.seed + int(config["server-round"]))  # the order of the batches
        set_weights(self.net, parameters)
        loss, accuracy = train(
            self.net, self.trainloader, self.local_epochs, float(config["lr"]), self.device
        )
        self.log("train", loss, accuracy)
        metrics = {"train_loss": loss, "train_accuracy": accuracy}
        return get_weights(self.net), len(self.trainloader.dataset), metrics

    def evaluate(self, parameters, config):  # noqa: ANN001, ANN201
        set_weights(self.net, parameters)
        loss, accuracy = test(self.net, self.testloader, self.device)
        self.log("validation", loss, accuracy)
        return loss, len(self.testloader.dataset), {"accuracy": accuracy}

    def log(self, what: str, loss: float, accuracy: float) -> None:
        """Log loss and accuracy at the next step of their kind."""
        steps = self.context.state.setdefault("steps", MetricRecord())
        steps[what] = int(steps.get(what, 0)) + 1
        if TRACKED:
            writer = tracking.SummaryWriter()
            writer.add_scalar(f"{what}/loss", loss, global_step=steps[what])
            writer.add_scalar(f"{what}/accuracy", accuracy, global_step=steps[what])


def client_fn(context: Context) -> Client:
    batch_size = int(context.run_config["batch-size"])
    trainloader, testloader = load_data(data_folder(context), batch_size)
    local_epochs = int(context.run_config["local-epochs"])
    seed = int(context.run_config["seed"])
    return FlowerClient(Net(), trainloader, testloader, local_epochs, seed, context).to_client()


app = ClientApp(client_fn=client_fn)


@app.lifespan()
def lifespan(context: Context) -> Iterator[None]:
    if TRACKED:
        tracking.init()
    try:
        yield
    finally:
        tracking.shutdown()
