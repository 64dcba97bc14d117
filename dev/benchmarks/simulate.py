"""Run a Flower app with FLARE's own Flower integration in FLARE's simulator, as its documentation shows.

It runs in a separate environment, with an older Flower, and knows nothing of Flowerbed.
"""

from __future__ import annotations

import argparse
import json

from nvflare.app_opt.flower.recipe import FlowerRecipe
from nvflare.recipe import SimEnv


def main() -> None:
    """Run the app to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("app")
    parser.add_argument("workspace")
    parser.add_argument("sites", type=int)
    parser.add_argument("run_config", type=json.loads)
    args = parser.parse_args()
    recipe = FlowerRecipe(
        flower_content=args.app, name="bench", min_clients=args.sites, run_config=args.run_config
    )
    recipe.execute(SimEnv(num_clients=args.sites, num_threads=args.sites, workspace_root=args.workspace))


if __name__ == "__main__":
    main()
