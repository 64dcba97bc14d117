"""The client: a function for each question, by its name."""

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query("summary")
def summary(message: Message, context: Context) -> Message:
    values = own(context)
    found = {
        "count": len(values),
        "sum": float(values.sum()),
        "least": float(values.min()),
        "most": float(values.max()),
    }
    return Message(content=RecordDict({"summary": MetricRecord(found)}), reply_to=message)


@app.query("histogram")
def histogram(message: Message, context: Context) -> Message:
    counts, _ = np.histogram(own(context), bins=message.content["bins"]["edges"])
    found = MetricRecord({"counts": counts.tolist()})
    return Message(content=RecordDict({"histogram": found}), reply_to=message)


def own(context: Context) -> np.ndarray:
    site = int(context.node_config["partition-id"])
    return np.random.default_rng([int(context.run_config["seed"]), site]).normal(site, 1.0, 100 + 50 * site)
