"""Give each participant of this machine a link to its listener, and keep some links ready.

A link is a network between a listener (the server or a relay) and one participant. A container's networks are
part of its Compose service, so a new network would replace the listener's container. Each listener therefore
has more links than it needs. A new participant takes a ready one. The listener's service stays the same.
Once few are ready, provisioning writes a second Compose file with more. `up` takes that one when the
listener's container is replaced anyway.

`links.json` beside the kits remembers who has which link.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provisioning.names import service_name
from provisioning.state import write_whole

FILE = "links.json"
"""The file beside the kits."""

MORE, MORE_COMPOSE = "more-links.json", "more-links.yaml"
"""The same with more ready links, and the Compose file of that."""

READY, STEP = 7, 4
"""Links that are ready at least after the number grows, and the step in which it grows. A link takes the
engine 0.1 s at the start of a federation, and 0.1 s at its end."""


@dataclass
class ListenerLinks:
    """The links of one listener. They have numbers from 1."""

    number: int = 0
    """How many there are."""
    taken: dict[str, int] = field(default_factory=dict)
    """The link of each participant, by its name."""
    left: dict[str, int] = field(default_factory=dict)
    """The last links of participants that left. The one that left first comes first."""

    def assign(self, names: Sequence[str]) -> None:
        """Give a link to each of these participants. Those of others are ready again."""
        for name in [name for name in self.taken if name not in names]:
            self.left[name] = self.taken.pop(name)
        for name in [name for name in names if name not in self.taken]:
            self.taken[name] = self._next(name)
        if not self.number or len(self.taken) > self.number:
            self.number = self.enough

    @property
    def enough(self) -> int:
        """The number with some ready ones."""
        return -(-(len(self.taken) + READY) // STEP) * STEP

    def _next(self, name: str) -> int:
        if name in self.left:
            return self.left.pop(name)
        used = {*self.taken.values(), *self.left.values()}
        # The container of a participant that left may still be there, in its link.
        if self.left and len(used) >= self.number > len(self.taken):
            return self.left.pop(next(iter(self.left)))
        return next(number for number in range(1, len(used) + 2) if number not in used)


def read(prod: Path, file: str = FILE) -> dict[str, ListenerLinks]:
    """Return the links of each listener by its name. Without a usable file there are none."""
    try:
        content = json.loads((prod / file).read_text())
        return {name: _links(value) for name, value in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def _links(value: Mapping[str, Any]) -> ListenerLinks:
    taken, left = ({str(k): int(v) for k, v in value[key].items()} for key in ("taken", "left"))
    found = ListenerLinks(int(value["number"]), taken, left)
    numbers = [*taken.values(), *left.values()]
    if len(set(numbers)) != len(numbers) or not set(numbers) <= set(range(1, found.number + 1)):
        raise ValueError("two participants have one link, or a number is out of range")
    return found


def grown(before: Mapping[str, ListenerLinks], after: Mapping[str, ListenerLinks]) -> list[str]:
    """Return the listeners that have more links than before. Their containers are replaced."""
    return [name for name, links in after.items() if name in before and links.number > before[name].number]


def save(prod: Path, links: Mapping[str, ListenerLinks], file: str = FILE) -> None:
    """Write the file."""
    content = {name: vars(value) for name, value in links.items()}
    write_whole(prod / file, (json.dumps(content, indent=2) + "\n").encode(), 0o644)


def with_more(links: Mapping[str, ListenerLinks]) -> dict[str, ListenerLinks]:
    """Return the links with enough ready ones for each listener."""
    return {
        name: ListenerLinks(max(one.number, one.enough), one.taken, one.left) for name, one in links.items()
    }


def take_more(compose: Path, staying: Collection[str]) -> list[str]:
    """Take the Compose file with more ready links, unless that would replace a container that stays.

    Args:
        compose: the federation's file.
        staying: the services whose containers are not replaced anyway.

    Returns: the listeners that have more links now.
    """
    prod, more = compose.parent, compose.with_name(MORE_COMPOSE)
    listeners = grown(read(prod), read(prod, MORE)) if more.is_file() else []
    if not listeners or any(service_name(name) in staying for name in listeners):
        return []
    # If this process is killed between the two, the next provisioning writes the Compose file.
    (prod / MORE).replace(prod / FILE)
    more.replace(compose)
    return listeners
