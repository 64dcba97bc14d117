"""Flower's Fleet API, as both ends of the relay read it."""
