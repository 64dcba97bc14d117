"""The client: says what it got, and sends as many bytes as it is asked for."""

import hashlib

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    asked = message.content["config"]
    sent = np.random.default_rng(int(context.node_config["partition-id"])).bytes(int(asked["up"]))
    told = {"sent": hashlib.sha256(sent).hexdigest(), "got": hashlib.sha256(asked["model"]).hexdigest()}
    return Message(RecordDict({"config": ConfigRecord({"model": sent, **told})}), reply_to=message)
