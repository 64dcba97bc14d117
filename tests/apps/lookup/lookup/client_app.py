"""The client: knows its number, or has no table."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    number = int(context.node_config["partition-id"])
    if str(number) in str(context.run_config["fails"]).split(","):
        raise RuntimeError("no table here")
    return Message(RecordDict({"found": MetricRecord({"number": number})}), reply_to=message)
