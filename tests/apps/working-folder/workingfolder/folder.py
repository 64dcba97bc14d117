"""An app's view of its working directory."""

from collections.abc import Callable
from pathlib import Path

READ = ("mydata/table.csv", "data/mydata/table.csv", "central.csv", "data/central.csv")
WRITTEN = ("mydata/new", "mydata/table.csv", "data/own", "own")


def seen() -> dict[str, str]:
    """The text of each file, and how writing each ends."""
    found = {f"read {name}": attempt(lambda name=name: Path(name).read_text().strip()) for name in READ}
    return found | {f"write {name}": attempt(lambda name=name: written(Path(name))) for name in WRITTEN}


def written(path: Path) -> str:
    """Return how many letters can be added to a file."""
    with path.open("a") as file:
        return str(file.write("x"))


def attempt(action: Callable[[], str]) -> str:
    """Return an action's result, or the name of its error."""
    try:
        return action()
    except OSError as error:
        return type(error).__name__
