"""Write the tables of a job's options in `docs/reference/` from their one definition (`JobOptions`).

  python -m dev.reference            write them
A test compares them (`tests/unit/test_job_options.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from bridge.common import job_options
from bridge.common.option import Option

PAGES = ("docs/reference/job.md", "docs/reference/verbs.md")
PLACE = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def table(name: str) -> str:
    """Return the table of one place: `server`, `site`, `recipe` or `submit`."""
    if name == "submit":
        return _rows(
            ("option", "meaning"), [(_flag(o), _with_more(o, o.help_text)) for o in job_options.of_submit()]
        )
    heads = {"server": "argument of `FlowerController`", "site": "argument of `FlowerExecutor`"}
    chosen = job_options.of_recipe() if name == "recipe" else job_options.options(name)
    rows = [(f"`{option.name}`", _shown(option.default), _meaning(option)) for option in chosen]
    return _rows((heads.get(name, "argument"), "default", "meaning"), rows)


def filled(page: str) -> str:
    """Return a page with current tables."""
    return PLACE.sub(lambda place: place[1] + table(place[2]) + place[3], page)


def main() -> None:
    """Write the tables into this checkout's pages."""
    for name in PAGES:
        page = Path(__file__).resolve().parents[1] / name
        page.write_text(filled(page.read_text()))


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("|" + "|".join(f" {cell} " for cell in line) + "|\n" for line in lines).replace(
        "| --- ", "|---"
    )


def _flag(option: Option) -> str:
    value = "\\|".join(option.choices) or option.metavar
    return f"`{option.flag} {value}`" if value and not option.is_switch else f"`{option.flag}`"


def _meaning(option: Option) -> str:
    return _with_more(option, f"{option.help} ({option.bounds})" if option.bounds else option.help)


def _with_more(option: Option, text: str) -> str:
    return f"{text}. {option.more}" if option.more else text


def _shown(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, float):
        return f"{default:g}"
    return json.dumps(default) if isinstance(default, bool | int) else f"`{json.dumps(default)}`"


if __name__ == "__main__":
    main()
