"""The client: trees for numbers below and above its own border."""

import lightgbm as lgb
import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    border = 100 + 200 * int(context.node_config["partition-id"])
    x = np.arange(400.0).reshape(-1, 1)
    settings = {"objective": "binary", "seed": 1, "verbose": -1, "num_threads": 1, "learning_rate": 0.5}
    trees = lgb.train(settings, lgb.Dataset(x, x[:, 0] >= border), int(context.run_config["num-trees"]))
    model = np.frombuffer(trees.model_to_string().encode(), dtype=np.uint8)
    content = {"arrays": ArrayRecord([model]), "metrics": MetricRecord({"border": border})}
    return Message(RecordDict(content), reply_to=message)
