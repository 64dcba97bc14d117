"""The server: sends each site a large record, gets another, and looks whether both arrived as they were."""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    run = context.run_config
    while len(nodes := list(grid.get_node_ids())) < int(run["num-sites"]):
        time.sleep(0.2)
    model = np.random.default_rng(99).bytes(int(run["down"]) * 10**6)
    content = RecordDict({"config": ConfigRecord({"model": model, "up": int(run["up"]) * 10**6})})
    began = time.monotonic()
    said = []
    for reply in grid.send_and_receive([Message(content, node, "query") for node in nodes]):
        if reply.has_error():
            said.append({"error": reply.error.reason})
            continue
        got = reply.content["config"]
        up = hashlib.sha256(got["model"]).hexdigest() == got["sent"]
        down = got["got"] == hashlib.sha256(model).hexdigest()
        said.append({"bytes": len(got["model"]), "up": up, "down": down})
    told = {"seconds": round(time.monotonic() - began, 1), "replies": said}
    print(json.dumps(told), flush=True)
    Path("said.json").write_text(json.dumps(told))
