"""The server: it sends, collects and averages itself, in both ways that the grid offers."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(nodes := list(grid.get_node_ids())) < int(context.run_config["num-sites"]):
        time.sleep(1)
    model = np.zeros(3)
    losses: list[float] = []
    for number in range(1, int(context.run_config["num-server-rounds"]) + 1):
        replies = push_and_pull(grid, messages(MessageType.TRAIN, number, model, nodes))
        model = np.mean([reply.content["arrays"].to_numpy_ndarrays()[0] for reply in replies], axis=0)

        replies = grid.send_and_receive(messages(MessageType.EVALUATE, number, model, nodes))
        losses.append(float(np.mean([reply.content["metrics"]["loss"] for reply in replies])))
        if losses[-1] <= float(context.run_config["loss-wanted"]):
            break
    Path("losses.json").write_text(json.dumps(losses))


def messages(kind: str, number: int, model: np.ndarray, nodes: list[int]) -> list[Message]:
    content = RecordDict({"arrays": ArrayRecord([model]), "config": ConfigRecord({"server-round": number})})
    return [Message(content, node, kind, group_id=str(number)) for node in nodes]


def push_and_pull(grid: Grid, sent: list[Message]) -> Iterable[Message]:
    """Do as `send_and_receive`, with time for other things, and return replies in the order of sending."""
    ids = list(grid.push_messages(sent))
    found: dict[str, Message] = {}
    while missing := [one for one in ids if one not in found]:
        found |= {reply.metadata.reply_to_message_id: reply for reply in grid.pull_messages(missing)}
        time.sleep(0.1)
    return [found[one] for one in ids]
