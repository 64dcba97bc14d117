"""The client: its number is 1, 2, 3, ..."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    model = message.content["arrays"].to_numpy_ndarrays()[0]
    arrays = ArrayRecord([model + (wanted(context) - model) / 2])
    return Message(content=RecordDict({"arrays": arrays}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model = message.content["arrays"].to_numpy_ndarrays()[0]
    metrics = MetricRecord({"loss": float(np.mean((model - wanted(context)) ** 2)), "num-examples": 3})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def wanted(context: Context) -> int:
    return int(context.node_config["partition-id"]) + 1
