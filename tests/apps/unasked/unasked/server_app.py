"""The server: asks for nothing and hears of both, then asks and gets replies."""

import json
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(nodes := list(grid.get_node_ids())) < int(context.run_config["num-sites"]):
        time.sleep(1)
    asked = set(grid.push_messages(messages(nodes, reply=False)))
    heard: list[Message] = []
    while len(heard) < len(nodes):
        heard += grid.pull_messages()
        time.sleep(0.1)
    replies = list(grid.send_and_receive(messages(nodes, reply=True)))
    found = {
        "unasked": sorted(said.content["metrics"]["number"] for said in heard),
        "replies": sorted(reply.content["metrics"]["number"] for reply in replies),
        "to": sorted(said.metadata.reply_to_message_id for said in heard),
        "asked": len(asked),
    }
    Path("heard.json").write_text(json.dumps(found))


def messages(nodes: list[int], *, reply: bool) -> list[Message]:
    content = RecordDict({"config": ConfigRecord({"reply": reply, "server-round": 1 + reply})})
    return [Message(content, node, "query", group_id=str(1 + reply)) for node in nodes]
