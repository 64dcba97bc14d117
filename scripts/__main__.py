"""`flowerbed VERB`: find the verb's module in this package or in `dev`, run it, report its result.

A verb is one module with a docstring (its help), `add_arguments(parser)` and `run(args) -> dict`
(the object that `--format json` prints). It fails by raising `core.Failure` or `core.Misuse`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from scripts import core
from scripts.core import Failure, say

# In the order in which a new user needs them.
VERBS = (
    "quickstart",
    "doctor",
    "provision",
    "build",
    "data",
    "up",
    "status",
    "submit",
    "hash",
    "jobs",
    "wait",
    "logs",
    "abort",
    "results",
    "kit",
    "down",
    "compare",
    "bench",
    "test",
)

DEVELOPERS = ("bench", "test")
"""The verbs whose modules are in `dev`."""


def parser(verbs_to_load: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """The command line of some verbs; the first line of a verb's docstring is its summary."""
    top = argparse.ArgumentParser(
        prog="flowerbed",
        description="Runs Flower apps, unchanged, on NVIDIA FLARE, across sites, in containers.",
        epilog="New here? ./flowerbed quickstart goes from nothing to a trained model.  "
        "What a verb does and takes: ./flowerbed VERB --help",
    )
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name in verbs_to_load:
        module = importlib.import_module(f"{'dev' if name in DEVELOPERS else 'scripts'}.{name}")
        text = (module.__doc__ or "").strip()
        sub = verbs.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument(
            "--format",
            choices=("text", "json"),
            default="text",
            help="json: one JSON object on the last line of stdout; text for people goes to stderr",
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def _acting_as() -> dict[str, str]:
    """Name and role of the identity that was used, if the verb asks the federation at all."""
    console = sys.modules.get("scripts.console")
    return {} if console is None else console.acting_as


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0 done, 1 failed, 2 wrong use."""
    words = sys.argv[1:] if argv is None else argv
    # Only the verb that is asked for: importing them all takes as long as most of them run.
    args = parser(words[:1] if words and words[0] in VERBS else VERBS).parse_args(words)
    outcome: dict[str, Any]
    code = 0
    _acting_as().clear()
    try:
        outcome = args.run(args)
    except Failure as failure:
        say(f"flowerbed {args.verb}: {failure}")
        outcome, code = {"error": str(failure), **failure.facts}, failure.exit_code
    except OSError as error:
        text = core.explain_os_error(error)
        say(f"flowerbed {args.verb}: {text}")
        outcome, code = {"error": text}, 1
    except KeyboardInterrupt:
        say(f"flowerbed {args.verb}: interrupted")
        outcome, code = {"error": "interrupted"}, 130
    if identity := _acting_as():
        outcome = {**outcome, "as": dict(identity)}
    if args.format == "json":
        print(json.dumps(outcome), flush=True)
    core.give_back()
    return code


if __name__ == "__main__":
    sys.exit(main())
