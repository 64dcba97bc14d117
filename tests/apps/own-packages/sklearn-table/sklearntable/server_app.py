"""The server: averages the lines, and evaluates the average itself too."""

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from sklearn.metrics import r2_score

app = ServerApp()


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    slope, intercept = arrays.to_numpy_ndarrays()
    x = np.arange(10.0)
    return MetricRecord({"r2": float(r2_score(3.5 * x + 2.5, slope * x + intercept))})


@app.main()
def main(grid: Grid, context: Context) -> None:
    result = FedAvg(min_available_nodes=2).start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros(1), np.zeros(1)]),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
    slope, intercept = result.arrays.to_numpy_ndarrays()
    found = {"slope": float(slope[0]), "intercept": float(intercept[0])}
    Path("line.json").write_text(json.dumps(found))
