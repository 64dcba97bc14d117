"""The client: one partition of the dataset."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr_datasets import FederatedDataset
from flwr_datasets.partitioner import IidPartitioner

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    parts = IidPartitioner(num_partitions=int(context.node_config["num-partitions"]))
    dataset = FederatedDataset(dataset=str(context.run_config["dataset"]), partitioners={"train": parts})
    part = dataset.load_partition(int(context.node_config["partition-id"])).with_format("numpy")
    numbers = part["number"][:]
    found = {"count": len(numbers), "sum": int(numbers.sum()), "squares": int((numbers**2).sum())}
    return Message(RecordDict({"found": MetricRecord(found)}), reply_to=message)
