"""Data and checkpoints by relative paths, at the sites and at the server."""
