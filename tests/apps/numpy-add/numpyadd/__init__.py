"""Every client adds 1 to every number."""

import numpy as np

PERIOD = 65521
"""A prime, so that no two chunks of a large array are alike: Flower would send only one of them."""


def beginning(size):  # noqa: ANN001, ANN201
    """The numbers to which clients add: 0, 1, 2, ... and again from 0."""
    return np.resize(np.arange(PERIOD, dtype=np.float32), size)
