"""The ServerApp tries it too, and keeps what all saw in seen.json."""

# ruff: noqa: PTH109, PTH120

import json
import os
import pathlib
import time

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from trespasser.deeds import do

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = []
    while not nodes:
        nodes = list(grid.get_node_ids())
        time.sleep(0.1)
    messages = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    mine = do(str(context.run_config["deed"]), os.path.dirname(os.getcwd()))
    time.sleep(float(context.run_config["seconds"]))
    replies = list(grid.send_and_receive(messages, timeout=120))
    sites = [json.loads(reply.content["seen"]["seen"]) for reply in replies if reply.has_content()]
    pathlib.Path("seen.json").write_text(json.dumps({"server": mine, "sites": sites}))
