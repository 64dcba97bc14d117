"""The ServerApp raises before the first round."""
