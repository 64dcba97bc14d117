"""Every client adds a constant of its own to every number."""

import numpy as np

PERIOD = 65521
"""A prime, so that no two chunks of a large array are alike: Flower would send only one of them."""
APART = 1000
"""Between two arrays, for the same reason; more than the rounds of a run add."""


def beginning(arrays: int, numbers: int) -> list[np.ndarray]:
    """Before the first round: 0, 1, 2, ... and from 0 again; the next array from 1000; and so on."""
    period = np.arange(PERIOD, dtype=np.float32)
    return [np.resize(period + APART * number, numbers) for number in range(arrays)]


def constant(partition: int) -> int:
    """What a client adds: each another, so that no two replies are alike either."""
    return 1 + partition
