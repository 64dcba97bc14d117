"""The client: says what it finds in its working directory, and whether it can write there."""

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from workingfolder import folder

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    found = {f"{path}": text for path, text in folder.seen().items()}
    return Message(content=RecordDict({"found": ConfigRecord(found)}), reply_to=message)
