"""The rules of the relay, which both of its ends share. It imports neither FLARE nor Flower."""
