"""The server: Flower's unchanged FedAvg, with a check that fails the run if a number is wrong."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from adder import PERIOD, beginning, constant

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    arrays, numbers = int(config["arrays"]), int(config["numbers"])
    rounds, nodes = int(config["num-server-rounds"]), int(config["min-available-nodes"])
    strategy = FedAvg(min_available_nodes=nodes)
    model = ArrayRecord(beginning(arrays, numbers))
    result = strategy.start(grid=grid, initial_arrays=model, num_rounds=rounds)
    check(result.arrays.to_numpy_ndarrays(), rounds * sum(map(constant, range(nodes))) / nodes)


def check(arrays: list[np.ndarray], grown: float) -> None:
    """Raise unless the arrays' first and last numbers have grown by `grown`."""
    for number, (array, before) in enumerate(
        zip(arrays, beginning(len(arrays), arrays[0].size), strict=True)
    ):
        for part in (slice(PERIOD), slice(-PERIOD, None)):
            difference = array[part] - before[part]
            if not np.allclose(difference, grown, atol=0.02):
                found = f"found {difference.min()} to {difference.max()}"
                raise RuntimeError(f"array {number}: expected every number to grow by {grown}, {found}")
