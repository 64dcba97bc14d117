"""Each site walks half the way to a number of its own."""
