"""pytorch-tracking: the model, its training and its data."""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F  # noqa: N812
from flwr.common import Context
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import FashionMNIST

# Several clients may share one machine, and this small CNN gains little from more threads.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)


class Net(nn.Module):
    """The small CNN of PyTorch's own tutorial (LeNet), for images of 28 x 28 pixels in grey."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def get_weights(net: nn.Module) -> list[np.ndarray]:
    return [val.cpu().numpy() for val in net.state_dict().values()]


def set_weights(net: nn.Module, parameters: list[np.ndarray]) -> None:
    params_dict = zip(net.state_dict().keys(), parameters, strict=True)
    net.load_state_dict(OrderedDict({k: torch.tensor(v) for k, v in params_dict}), strict=True)


def data_folder(context: Context) -> Path:
    """The folder with this client's own part of Fashion-MNIST.

    `data-dir` (of the node config, else of the run config) is that folder, or holds one folder a
    partition: site-1 for partition-id 0, site-2 for partition-id 1, and so on.
    """
    root = Path(str(context.node_config.get("data-dir", context.run_config["data-dir"]))).expanduser()
    if (root / "FashionMNIST").is_dir():
        return root
    if "partition-id" in context.node_config:
        part = root / f"site-{int(context.node_config['partition-id']) + 1}"
        if (part / "FashionMNIST").is_dir():
            return part
        raise FileNotFoundError(f"No Fashion-MNIST here: expected {root}/FashionMNIST or {part}/FashionMNIST")
    raise FileNotFoundError(f"No Fashion-MNIST here: expected {root}/FashionMNIST/raw with its four files")


def load_data(folder: Path, batch_size: int) -> tuple[DataLoader, DataLoader]:
    """The client's training and test data."""
    trainset = normalized(FashionMNIST(folder, train=True))
    testset = normalized(FashionMNIST(folder, train=False))
    return DataLoader(trainset, batch_size=batch_size, shuffle=True), DataLoader(testset, batch_size=256)


def normalized(dataset: FashionMNIST) -> TensorDataset:
    """All images at once, scaled by the dataset's mean and deviation: faster than one by one."""
    images = (dataset.data.unsqueeze(1) / 255 - 0.286) / 0.353
    return TensorDataset(images, dataset.targets)


def train(
    net: nn.Module, trainloader: DataLoader, epochs: int, lr: float, device: torch.device
) -> tuple[float, float]:
    """Train the model. Returns loss and accuracy over the last epoch, as the model improved."""
    net.to(device)
    criterion = nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    for _ in range(epochs):
        loss_sum, correct, seen = 0.0, 0, 0
        for images, labels in trainloader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            outputs = net(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
            correct += (outputs.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
    return loss_sum / seen, correct / seen


def test(net: nn.Module, testloader: DataLoader, device: torch.device) -> tuple[float, float]:
    """Evaluate the model. Returns mean loss and accuracy."""
    net.to(device)
    criterion = nn.CrossEntropyLoss(reduction="sum").to(device)
    net.eval()
    loss_sum, correct = 0.0, 0
    with torch.no_grad():
        for images, labels in testloader:
            images, labels = images.to(device), labels.to(device)
            outputs = net(images)
            loss_sum += criterion(outputs, labels).item()
            correct += (outputs.argmax(dim=1) == labels).sum().item()
    return loss_sum / len(testloader.dataset), correct / len(testloader.dataset)
