"""The server: asks each site once, and keeps what it says."""

import json
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    asked = [Message(RecordDict({"config": ConfigRecord({})}), node, "query") for node in grid.get_node_ids()]
    said = [str(reply.content["config"]["said"]) for reply in grid.send_and_receive(asked)]
    found = {site["node_config"]["client-name"]: site for site in map(json.loads, said)}
    Path("said.json").write_text(json.dumps(found))
