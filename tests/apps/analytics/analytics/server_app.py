"""The server: it asks two questions, and the second needs the first one's answer."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(nodes := list(grid.get_node_ids())) < int(context.run_config["num-sites"]):
        time.sleep(1)

    replies = grid.send_and_receive([Message(RecordDict(), node, "query.summary") for node in nodes])
    summaries = [reply.content["summary"] for reply in replies]
    count = sum(one["count"] for one in summaries)
    mean = sum(one["sum"] for one in summaries) / count
    edges = np.linspace(min(one["least"] for one in summaries), max(one["most"] for one in summaries), 9)

    question = RecordDict({"bins": ConfigRecord({"edges": edges.tolist()})})
    replies = grid.send_and_receive([Message(question, node, "query.histogram") for node in nodes])
    histogram = np.sum([reply.content["histogram"]["counts"] for reply in replies], axis=0)

    found = {"count": count, "mean": mean, "edges": edges.tolist(), "histogram": histogram.tolist()}
    Path("analytics.json").write_text(json.dumps(found))
