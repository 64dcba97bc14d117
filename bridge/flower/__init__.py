"""Code that runs inside Flower's processes, from the app's environment. It imports nothing of FLARE."""
