"""The client: sends back what it got."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    return Message(content=message.content, reply_to=message)
