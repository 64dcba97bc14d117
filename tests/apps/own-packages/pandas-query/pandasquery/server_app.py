"""The server: adds the answers."""

import json
import time
from pathlib import Path

import pandas as pd
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from pandasquery import versions

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(nodes := list(grid.get_node_ids())) < int(context.run_config["num-sites"]):
        time.sleep(1)
    asked = [Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes]
    replies = [reply for reply in grid.send_and_receive(asked) if reply.has_content()]
    print("answers:", len(replies), "of", len(asked))
    total = pd.DataFrame([dict(reply.content["answer"]) for reply in replies]).sum()
    found = {
        "total": {name: int(number) for name, number in total.items()},
        "versions": [versions.here(), *(dict(reply.content["versions"]) for reply in replies)],
    }
    Path("total.json").write_text(json.dumps(found))
