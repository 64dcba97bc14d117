"""Code that starts and confines Flower's processes. It imports neither FLARE nor Flower."""
