"""The server: FedAvg in Flower's wrapper for clipping at the sites: it tells them the norm and adds noise."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    sites = int(context.run_config["num-sites"])
    strategy = DifferentialPrivacyClientSideFixedClipping(
        FedAvg(min_train_nodes=sites, min_evaluate_nodes=sites, min_available_nodes=sites),
        noise_multiplier=float(context.run_config["noise-multiplier"]),
        clipping_norm=float(context.run_config["clipping-norm"]),
        num_sampled_clients=sites,
    )
    rounds = int(context.run_config["num-server-rounds"])
    strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(4)]), num_rounds=rounds)
