"""A ServerApp's process that keeps the sites' order: Flower's own grid and client manager, no SuperLink."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from bridge.launch import environment, plan

NODES = {30: "site-1", 10: "site-2", 20: "site-3"}

PROGRAM = """
import json, random, time
from types import SimpleNamespace
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.server import server
from flwr.server.client_manager import SimpleClientManager
from flwr.supercore.task_identity import TaskIdentity
from flwr.common import Code
from flwr.superlink.grid.http_grid import HttpGrid
from importlib import import_module
run_serverapp = import_module("flwr.superlink.runtime.run_serverapp")

TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
sent = {}
def push(self, run_id, messages):
    sent.update({m.metadata.message_id: m for m in messages})
    return [m.metadata.message_id for m in messages]

def pull(self, ids):
    # As they come: not in the order of the sites.
    asked = sorted((sent.pop(i) for i in ids), key=lambda m: m.metadata.dst_node_id)
    replies = []
    for m in asked:
        node = m.metadata.dst_node_id
        metrics = MetricRecord({"loss": node / 3, "num-examples": node})
        arrays = ArrayRecord({"a": Array(np.full(3, node))})
        replies.append(Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=m))
    return replies

HttpGrid._try_push_messages, HttpGrid.pull_messages = push, pull
HttpGrid.get_nodes = lambda self: [SimpleNamespace(node_id=n) for n in (10, 20, 30, 40)]
class Client:
    def __init__(self, node):
        self.cid = str(node)
    def fit(self, ins, timeout, group_id):
        time.sleep(random_of_the_thread.uniform(0, 0.02))
        if self.cid == "40":
            raise ValueError("failure")
        return SimpleNamespace(status=SimpleNamespace(code=Code.OK), node=int(self.cid))
random_of_the_thread = random.Random()

import os, sys
from bridge.flower import deterministic

# What is imported is the same for all: each run is a copy of this process.
for line in sys.stdin:
    if os.fork() == 0:
        break
    _, status = os.wait()
    if status:
        sys.exit(1)
else:
    sys.exit(0)
os.environ.update(json.loads(line))
deterministic.begin()

grid = run_serverapp.HttpGrid("127.0.0.1:1", insecure=True, token="x")
grid._run = SimpleNamespace(run_id=1)
def message(node):
    arrays, config = ArrayRecord({"a": Array(np.zeros(3))}), ConfigRecord({"server-round": 1})
    return Message(RecordDict({"arrays": arrays, "config": config}), node, "train")
replies = grid.send_and_receive([message(n) for n in (10, 20, 30)])
manager = SimpleClientManager()
for n in (40, 10, 20, 30):
    manager.register(SimpleNamespace(cid=str(n)))
asked = [(Client(n), None) for n in (40, 10, 20, 30)]
results, failures = server.fit_clients(asked, None, None, 1)
print(json.dumps({
    "nodes": list(grid.get_node_ids()),
    "replies": [r.metadata.src_node_id for r in replies],
    "clients": list(manager.clients),
    "results": [result.node for _, result in results],
    "failures": [str(failure) for failure in failures],
    "random": [random.random(), np.random.rand()],
}), flush=True)
"""


def run(*folders: Path | None) -> list[dict[str, object]]:
    """Return the program's findings, by the plan in each folder, or without a plan."""
    asked = [
        {} if folder is None else {environment.DETERMINISTIC: str(folder / plan.PLAN_FILE)}
        for folder in folders
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="".join(json.dumps(more) + "\n" for more in asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(folders)
    return found


def test_nodes_clients_and_replies_come_in_the_order_of_the_sites(tmp_path: Path) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    for folder, seed in ((first, 7), (other, 8)):
        folder.mkdir()
        plan.write_plan(folder, seed, NODES)

    found, with_another_seed, unasked = run(first, other, None)

    # A node that nobody has told of comes last.
    assert found["nodes"] == [30, 10, 20, 40]
    assert found["clients"] == ["30", "10", "20", "40"]
    assert found["replies"] == found["results"] == [30, 10, 20]
    assert found["failures"] == ["failure"]

    events = [json.loads(line) for line in (first / plan.TRACE_FILE).read_text().splitlines()]
    assert [e["event"] for e in events] == ["round", *["sent"] * 3, *["reply"] * 3]
    assert {(e["round"], e["site"], e["kind"]) for e in events[1:]} == {
        (1, site, "train") for site in NODES.values()
    }
    assert len({e["parameters"] for e in events[1:4]}) == 1, "the same went to all"
    assert len({e["parameters"] for e in events[4:]}) == 3
    assert {e["site"]: (e["metrics"], e["num_examples"], e["error"]) for e in events[4:]} == {
        site: ({"loss": node / 3}, node, "") for node, site in NODES.items()
    }

    assert with_another_seed["random"] != found["random"]
    # In another process, where sets have another order.
    assert run(first) == [found]

    # Nothing is done where nobody asks.
    assert unasked["nodes"] == unasked["replies"] + [40] == [10, 20, 30, 40]  # type: ignore[operator]
    assert sorted(tmp_path.iterdir()) == [first, other]


def test_waits_do_not_change_the_random_draws() -> None:
    """The lengths of waits (a heartbeat, a retry) are random, and their number depends on the machine."""
    program = (
        "import importlib, random\n"
        "from bridge.flower import deterministic\n"
        "deterministic._seed(7)\n"
        "for name in ('supercore.heartbeat', 'supercore.inflatable.inflatable_utils',\n"
        "             'supercore.retry.retry_invoker'):\n"
        "    module = importlib.import_module('flwr.' + name)\n"
        "    exec('random.uniform(0, 1)', vars(module))\n"
        "print(random.random())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == random.Random(7).random()
