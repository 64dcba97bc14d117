"""The client: it adds its constant to every number, and evaluates by reporting the first one."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from adder import constant

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    mine = constant(int(context.node_config["partition-id"]))
    arrays = [array + mine for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    first = message.content["arrays"].to_numpy_ndarrays()[0][0]
    metrics = MetricRecord({"num-examples": 1, "first": float(first)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
