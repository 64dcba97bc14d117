"""The packages of this process."""

from importlib.metadata import version

import numpy as np
import pandas as pd
from google import protobuf


def here() -> dict[str, str]:
    """Versions as the modules say them, and of flwr as it is installed."""
    return {
        "flwr": version("flwr"),
        "numpy": np.__version__,
        "pandas": pd.__version__,
        "protobuf": protobuf.__version__,
    }
