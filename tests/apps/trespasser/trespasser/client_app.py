"""Each ClientApp tries it, and sends what it saw."""

# ruff: noqa: PTH109, PTH120

import json
import os
import time

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from trespasser.deeds import do

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    seen = do(str(context.run_config["deed"]), os.path.dirname(os.getcwd()))
    time.sleep(float(context.run_config["seconds"]))
    return Message(RecordDict({"seen": ConfigRecord({"seen": json.dumps(seen)})}), reply_to=message)
