"""The client: answers the first message with one that is no reply, and the second with a reply."""

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

SERVER_APP = 1
"""The ServerApp's node."""

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"]) + 1
    content = RecordDict({"metrics": MetricRecord({"number": number, "num-examples": 1})})
    if message.content["config"]["reply"]:
        return Message(content=content, reply_to=message)
    content["config"] = ConfigRecord({"said": "unasked"})
    return Message(content, SERVER_APP, message_type="query", group_id="1")
