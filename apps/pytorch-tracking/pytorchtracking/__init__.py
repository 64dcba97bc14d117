"""pytorch-tracking: a Flower / PyTorch app."""
