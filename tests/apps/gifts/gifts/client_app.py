"""The client: what it finds at its site."""

import json
import os
import shutil
import socket
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    files = [path for path in Path("/data").rglob("*") if path.is_file()]
    found = {
        "node_config": dict(context.node_config),
        "environment": {name: value for name, value in os.environ.items() if name.startswith("SITE_")},
        "files": len(files),
        "bytes": sum(len(path.read_bytes()) for path in files),
        "shared": shutil.disk_usage("/dev/shm").total,
        "database": address("db.hospital.example"),
        "groups": os.getgroups(),
    }
    print("said to the server, and not in the log")
    return Message(RecordDict({"config": ConfigRecord({"said": json.dumps(found)})}), reply_to=message)


def address(name: str) -> str:
    try:
        return socket.gethostbyname(name)
    except OSError:
        return ""
