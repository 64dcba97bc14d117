"""The server: Flower's FedAvg as it is."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    rounds = int(context.run_config["num-server-rounds"])
    FedAvg().start(grid=grid, initial_arrays=ArrayRecord([np.zeros(10)]), num_rounds=rounds)
