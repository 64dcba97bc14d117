"""Each site grows trees with LightGBM, which needs a library of the system."""
