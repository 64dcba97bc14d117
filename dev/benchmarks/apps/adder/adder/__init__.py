"""An app in which every client adds its own constant to every number."""

import numpy as np

PERIOD = 65521
"""A prime, so that no two chunks of a large array are equal: Flower would send only one of them."""
APART = 1000
"""Distance between two arrays, for the same reason. It exceeds what the rounds of a run add."""


def beginning(arrays: int, numbers: int) -> list[np.ndarray]:
    """Return the initial numbers: 0, 1, 2, ... and from 0 again, the next array from 1000, and so on."""
    period = np.arange(PERIOD, dtype=np.float32)
    return [np.resize(period + APART * number, numbers) for number in range(arrays)]


def constant(partition: int) -> int:
    """Return a client's constant. It differs between clients, so that no two replies are equal either."""
    return 1 + partition
