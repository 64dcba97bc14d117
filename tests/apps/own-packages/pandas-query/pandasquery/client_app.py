"""The client: knows from its site's node config which table is meant."""

import pandas as pd
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from pandasquery import versions

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    name = context.node_config.get("table", context.run_config["table"])
    table = pd.read_csv(f"data/{name}.csv")
    days = table.groupby("ward")["days"].agg(["count", "sum"])
    answer = {f"{ward}-{what}": int(days.loc[ward, what]) for ward in days.index for what in days.columns}
    content = {"answer": MetricRecord(answer), "versions": ConfigRecord(dict(versions.here()))}
    return Message(RecordDict(content), reply_to=message)
