"""`--federation-config` of `flwr run`, as far as its keys mean something on real sites.

Flower's keys set up its simulation. Two of them have a meaning here, and the others are refused by name.
"""

from __future__ import annotations

from flwr.proto.federation_config_pb2 import SimulationConfig

from bridge.flare.control_api import errors
from bridge.flare.control_api.errors import ControlError

MEANINGS = {"num_supernodes": "min_sites", "client_resources_num_gpus": "gpus"}
"""The keys that mean a job option, as flwr 1.40 to 1.42 name them."""


def options_of(config: SimulationConfig) -> dict[str, int]:
    """Return the job options that the keys mean.

    Raises:
        ControlError: a key has no meaning on real sites, or its value has none.
    """
    found = {}
    for key, value in config.ListFields():
        name = key.name.replace("_", "-")
        if key.name not in MEANINGS:
            raise _refused(
                f"{name} sets up Flower's simulation, and Flowerbed runs on real sites. They know "
                "num-supernodes, the fewest sites, and client-resources-num-gpus, the GPUs at each site. "
                "`./flowerbed submit --sites` chooses sites."
            )
        least = 1 if key.name == "num_supernodes" else 0
        if not float(value).is_integer() or value < least:
            raise _refused(f"{name}={value:g}: expected a whole number, {least} or more.")
        found[MEANINGS[key.name]] = int(value)
    return found


def note(options: dict[str, int]) -> str:
    """Tell people what the fewest sites mean here, if they are given."""
    if not (fewest := options.get("min_sites")):
        return ""
    sites = "site" if fewest == 1 else "sites"
    return f"The run needs {fewest} {sites}, and all registered sites may take part."


def _refused(text: str) -> ControlError:
    return ControlError(f"--federation-config {text}", errors.INVALID_RUN_CONFIG)
