"""The server: asks all sites at once, and may take for granted that one answers."""

import time

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    print("looking for", config["num-sites"], "sites")
    time.sleep(float(config["seconds"]))
    while len(nodes := list(grid.get_node_ids())) < int(config["num-sites"]):
        time.sleep(0.1)
    asked = [Message(RecordDict(), dst_node_id=n, message_type=MessageType.QUERY) for n in nodes]
    good = [reply for reply in grid.send_and_receive(asked) if reply.has_content()]
    print("answers:", len(good), "of", len(asked))
    if config["needs-one"]:
        print("the first:", good[0].content["found"]["number"])
