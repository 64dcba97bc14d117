"""pytorch-quickstart: a Flower / PyTorch app."""
