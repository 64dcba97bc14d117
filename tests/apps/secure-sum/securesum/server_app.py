"""The server: Flower's default workflow, with SecAgg+ in place of its training."""

import numpy as np
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import Grid, LegacyContext, ServerApp, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    sites = int(context.run_config["num-sites"])
    strategy = FedAvg(
        min_fit_clients=sites,
        min_evaluate_clients=sites,
        min_available_clients=sites,
        initial_parameters=ndarrays_to_parameters([np.zeros(4)]),
    )
    config = ServerConfig(num_rounds=int(context.run_config["num-server-rounds"]))
    legacy = LegacyContext(context=context, config=config, strategy=strategy)
    workflow = DefaultWorkflow(
        fit_workflow=SecAggPlusWorkflow(num_shares=sites, reconstruction_threshold=sites - 1)
    )
    workflow(grid, legacy)
