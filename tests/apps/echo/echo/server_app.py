"""The server: sends each site a message of each shape, and looks whether it comes back as it was."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(nodes := list(grid.get_node_ids())) < int(context.run_config["num-sites"]):
        time.sleep(1)
    shapes = {
        "nothing": RecordDict(),
        "empty records": RecordDict(
            {"arrays": ArrayRecord(), "metrics": MetricRecord(), "config": ConfigRecord()}
        ),
        "records of nothing": RecordDict(
            {
                "arrays": ArrayRecord([np.zeros(0, dtype=np.float32), np.zeros((3, 0))]),
                "config": ConfigRecord({"bytes": b"", "text": "", "list": []}),
            }
        ),
        "many arrays": RecordDict({"arrays": many(int(context.run_config["num-arrays"]))}),
    }
    same: dict[str, int] = {}
    for name, content in shapes.items():
        replies = grid.send_and_receive([Message(content, node, "query") for node in nodes])
        same[name] = sum(reply.has_content() and reply.content == content for reply in replies)
    Path("same.json").write_text(json.dumps(same))


def many(number: int) -> ArrayRecord:
    """Return so many arrays, all of them different: Flower would send equal ones only once."""
    return ArrayRecord({f"layer.{i}": Array(np.full(4, i, dtype=np.float32)) for i in range(number)})
