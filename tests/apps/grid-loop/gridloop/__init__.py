"""Each site moves half the way to its own number."""
