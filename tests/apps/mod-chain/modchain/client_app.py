"""The client: a mod sees a message before the app does, and the app's reply before the server does.

The first in the list is the outermost: replies pass the last one first.
"""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod, message_size_mod
from flwr.clientapp.typing import ClientAppCallable, Mod

app = ClientApp()


def measure(name: str) -> Mod:
    """A mod of the app's own: how long the update is that passes here."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        before = message.content["arrays"].to_numpy_ndarrays()[0]
        reply = call_next(message, context)
        after = reply.content["arrays"].to_numpy_ndarrays()[0]
        reply.content["metrics"][name] = float(np.linalg.norm(after - before))
        return reply

    return mod


MODS = [
    message_size_mod,
    measure("sent"),
    LocalDpMod(clipping_norm=1.0, sensitivity=0.01, epsilon=1.0, delta=1e-5),
    measure("clipped"),
    fixedclipping_mod,
    measure("learned"),
]


@app.train(mods=MODS)
def train(message: Message, context: Context) -> Message:
    site = int(context.node_config["partition-id"])
    # Local differential privacy draws its noise from numpy's generator, in this process. A real app would
    # not seed it: who knows the seed can take the noise away.
    np.random.seed([int(context.run_config["seed"]), site, int(message.content["config"]["server-round"])])
    arrays = [array + site + 1 for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 10 * (site + 1)})
    return Message(content=RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    mean = float(np.mean(message.content["arrays"].to_numpy_ndarrays()[0]))
    metrics = MetricRecord({"num-examples": 10, "mean": mean})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)
