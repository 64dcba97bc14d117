"""The client: what it keeps in its context is there again in the next round."""

import time

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    time.sleep(float(context.run_config["seconds"]))
    if "kept" not in context.state:
        context.state["kept"] = MetricRecord({"trainings": 0})
    context.state["kept"]["trainings"] += 1
    trainings = context.state["kept"]["trainings"]
    arrays = [array + trainings for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1, "trainings": trainings})
    return Message(content=RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"num-examples": 1, "trainings": context.state["kept"]["trainings"]})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
