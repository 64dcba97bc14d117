"""Know the flwr versions that work, and their differences: each generation lists its changes.

Read in each version's `--help`, `superlink/cli/flower_superlink.py`, `supernode/cli/flower_supernode.py` and
`proto/`. These do not differ from 1.34 on: the twelve calls of the Fleet API and their messages, the Control
API's calls that are used here (with the query of a run's status), and the variables in `environment.py`. This
module imports nothing of flwr, so that it can report an error for any version.
"""

from __future__ import annotations

import contextlib
import enum
from dataclasses import dataclass, replace

from bridge.common.errors import FlowerbedError

Minor = tuple[int, int]

VERSION_LIMIT = 40
"""Characters of a version that are read from a site. The longest of flwr's has 15."""


class Transport(enum.Enum):
    """The transport of an API."""

    HTTP = "HTTP"
    """Protobuf over HTTP/1.1. All of a SuperLink's HTTP APIs share one port."""
    GRPC = "gRPC"
    """Each API has a separate port."""


@dataclass(frozen=True)
class Generation:
    """The minor versions from `first` to `last`."""

    first: Minor
    last: Minor
    fleet: Transport
    """The transport between a SuperNode and its SuperLink. Both sides of a job must use the same."""
    control: Transport
    superlink: str
    """flower-superlink's flags for its ports, by name (see `Ports`)."""
    supernode: str
    """flower-supernode's flags for the port of its Runtime API."""
    fast_path: bool = False
    """True if its programs can run without their waits (`long_poll.py`, `fork_server.py`), and its SuperNode
    inside another process (`inline.py`). That depends on its internals. The others wait as Flower does."""
    unasked: bool = False
    """True if a ClientApp may send its ServerApp messages that reply to nothing. Older ServerApps took them
    for one more reply."""


_34 = Generation(
    first=(1, 34),
    last=(1, 34),
    fleet=Transport.GRPC,
    control=Transport.GRPC,
    superlink="--fleet-api-address 127.0.0.1:{fleet} --control-api-address 127.0.0.1:{control} "
    "--serverappio-api-address 127.0.0.1:{runtime}",
    supernode="--clientappio-api-address 127.0.0.1:{runtime}",
)
_35 = replace(
    _34,
    first=(1, 35),
    last=(1, 36),
    superlink="--fleet-api-address 127.0.0.1:{fleet} --control-api-address 127.0.0.1:{control} "
    "--host 127.0.0.1 --port {http}",
    supernode="--host 127.0.0.1 --port {runtime}",
)
_37 = replace(
    _35,
    first=(1, 37),
    last=(1, 39),
    control=Transport.HTTP,
    superlink="--fleet-api-address 127.0.0.1:{fleet} --host 127.0.0.1 --port {http}",
)
_40 = replace(
    _37,
    first=(1, 40),
    last=(1, 42),
    fleet=Transport.HTTP,
    superlink="--host 127.0.0.1 --port {http}",
    fast_path=True,
)
_43 = replace(_40, first=(1, 43), last=(1, 43), unasked=True)

GENERATIONS = (_34, _35, _37, _40, _43)
"""From the oldest to the newest, without a gap."""

OLDEST = ".".join(map(str, GENERATIONS[0].first))
"""The oldest version of Flower that works here."""

NEWER = replace(GENERATIONS[-1], fast_path=False)
"""The row of a flwr that is newer than all of them. It speaks as the newest does, and waits as Flower does,
since nobody has read its internals."""

DISTRIBUTIONS = ("flwr", "flwr-nightly")
"""The names that Flower is published under."""


@dataclass(frozen=True)
class Ports:
    """A SuperLink's ports: one for the HTTP APIs, and one for each API that may be gRPC."""

    http: int
    fleet: int
    control: int
    runtime: int

    def of_fleet(self, generation: Generation) -> int:
        """Return the port for SuperNodes' calls."""
        return self.http if generation.fleet is Transport.HTTP else self.fleet

    def of_control(self, generation: Generation) -> int:
        """Return the port where a run is started and followed."""
        return self.http if generation.control is Transport.HTTP else self.control


class UnsupportedFlower(FlowerbedError):
    """Raised when this flwr does not speak the protocol that the relay carries. The text is for users."""


def supported() -> str:
    """Return the range that is known to work, for users."""
    return f"{_text(GENERATIONS[0].first)} to {_text(GENERATIONS[-1].last)}"


def installed() -> str:
    """Return the version of this environment's flwr.

    Raises:
        UnsupportedFlower: there is none.
    """
    # Imported here, since the verbs on the host do not need it, and it takes a while.
    from importlib import metadata

    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    raise UnsupportedFlower(f"flwr is not installed here: expected {supported()}")


def known_inside() -> str:
    """Return the range that can run without waits, or inside another process, for users."""
    known = [row for row in GENERATIONS if row.fast_path]
    return f"{_text(known[0].first)} to {_text(known[-1].last)}"


def require_fast_path(what: str, version: str | None = None) -> None:
    """Raise `UnsupportedFlower` unless the internals of flwr `version` (None: the installed one) are known.
    `what`, for users, depends on them."""
    if not generation(version).fast_path:
        raise UnsupportedFlower(
            f"{what} does not work with flwr {version or installed()}: expected {known_inside()}. Leave the "
            "option out, or ask for one of these versions in the app's pyproject.toml."
        )


def require_same_minor(what: str, version: str) -> None:
    """Raise `UnsupportedFlower` unless flwr `version` is the installed one, except for its last number.
    `what`, for users, runs here and talks to it."""
    if _minor(version) != _minor(installed()):
        raise UnsupportedFlower(
            f"{what} has flwr {installed()}, and the app has flwr {version}. Leave the option out."
        )


def generation(version: str | None = None) -> Generation:
    """Return the row of `version` (None: of the one that is installed), or `NEWER`.

    Raises:
        UnsupportedFlower: it is older than all of them, or not a version.
    """
    version = installed() if version is None else version
    minor = _minor(version)
    for row in GENERATIONS:
        if minor is not None and row.first <= minor <= row.last:
            return row
    if minor is not None and minor > GENERATIONS[-1].last:
        return NEWER
    raise UnsupportedFlower(
        f"flwr {version} does not work here: expected {supported()}. "
        "Ask for one of these versions in the app's pyproject.toml."
    )


def newer(version: str | None = None) -> str | None:
    """Return the warning for a `version` (None: the installed one) that nobody has tried, if it is one."""
    version = version or installed()
    if generation(version) is not NEWER:
        return None
    return (
        f"flwr {version[:VERSION_LIMIT]} is newer than the versions that Flowerbed knows ({supported()}). "
        "The app runs without Flowerbed's fast path, at plain Flower's speed."
    )


def mismatch(site: str, found: str, server: str) -> str | None:
    """Return why a site with flwr `found` cannot work with a server that has flwr `server`, if it cannot.

    Patch versions may differ, and minor versions of one Fleet API, as far as Flower itself allows that. Its
    SuperLinks note another minor version and refuse none (`reject_incompatible=False`). A site that gives no
    version runs no Flower, and has something else to say.
    """
    if not found:
        return None
    found = found[:VERSION_LIMIT]
    try:
        theirs, ours = generation(found).fleet, generation(server).fleet
    except UnsupportedFlower as wrong:
        return f"{site} cannot take part: {wrong}"
    if theirs is ours:
        return None
    return (
        f"{site} has flwr {found} (Fleet API over {theirs.value}), the server has flwr {server} (Fleet API "
        f"over {ours.value}). They cannot talk to each other. Give both the same environment of the app "
        f"(./flowerbed apps shows which there are), or leave {site} out with --sites."
    )


def _minor(version: str) -> Minor | None:
    try:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        return None


def _text(minor: Minor) -> str:
    return f"{minor[0]}.{minor[1]}"
