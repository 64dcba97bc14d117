"""pytorch-quickstart: the ClientApp, which trains and evaluates on a client's own data."""

import torch
from flwr.client import Client, ClientApp, NumPyClient
from flwr.common import Context
from torch.utils.data import DataLoader

from pytorchquickstart.task import Net, data_folder, get_weights, load_data, set_weights, test, train


class FlowerClient(NumPyClient):
    def __init__(
        self, net: Net, trainloader: DataLoader, testloader: DataLoader, local_epochs: int, seed: int
    ) -> None:
        self.net = net
        self.trainloader = trainloader
        self.testloader = testloader
        self.local_epochs = local_epochs
        self.seed = seed
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    def fit(self, parameters, config):  # noqa: ANN001, ANN201
        torch.manual_seed(self.seed + int(config["server-round"]))  # the order of the batches
        set_weights(self.net, parameters)
        loss, accuracy = train(
            self.net, self.trainloader, self.local_epochs, float(config["lr"]), self.device
        )
        metrics = {"train_loss": loss, "train_accuracy": accuracy}
        return get_weights(self.net), len(self.trainloader.dataset), metrics

    def evaluate(self, parameters, config):  # noqa: ANN001, ANN201
        set_weights(self.net, parameters)
        loss, accuracy = test(self.net, self.testloader, self.device)
        return loss, len(self.testloader.dataset), {"accuracy": accuracy}


def client_fn(context: Context) -> Client:
    batch_size = int(context.run_config["batch-size"])
    trainloader, testloader = load_data(data_folder(context), batch_size)
    local_epochs = int(context.run_config["local-epochs"])
    seed = int(context.run_config["seed"])
    return FlowerClient(Net(), trainloader, testloader, local_epochs, seed).to_client()


app = ClientApp(client_fn=client_fn)
