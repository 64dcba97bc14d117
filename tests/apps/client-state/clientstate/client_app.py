"""The client: what it keeps in its context is there again in the next round."""

import time

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    time.sleep(float(context.run_config["seconds"]))
    trainings = trained(context) + 1
    context.state["kept"] = MetricRecord({"trainings": trainings})
    arrays = [array + trainings for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1, "trainings": trainings})
    return Message(content=RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1, "trainings": trained(context)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def trained(context: Context) -> int:
    """Return how often this site has trained in this run."""
    return context.state["kept"]["trainings"] if "kept" in context.state else 0
