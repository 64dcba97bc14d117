"""Each site takes its part of a dataset in a folder, by flwr-datasets and without a hub."""
