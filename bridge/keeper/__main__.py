"""Keep what the server sends to a site: check it, and install it where the site's FLARE reads it.

    keeper                    look at the spool every few seconds
    keeper once FOLDER        install what a folder holds, such as a stick's
    keeper news               say what was not installed
    keeper approve CHECKSUM   let an environment with this checksum in

It runs in a container without a network and without a key. It can write what it keeps, and the site's FLARE
cannot.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bridge.common import offers, site_environments, spool
from bridge.common.app_environment import ROOT as ENVIRONMENTS
from bridge.common.site_environments import Approvals, News
from bridge.common.text import one_line
from bridge.keeper import address, certificates
from bridge.keeper.environments import Installer, forget_unfinished

log = logging.getLogger("keeper")

EVERY = 2.0
"""Seconds between two looks at the spool."""

RENEWED = Path("/renewed")
"""The certificates that are newer than the kit's."""

STEPS: tuple[Callable[[Path, Path], object], ...] = (address.install, certificates.install)
"""What is installed besides environments: functions of the spool and of `RENEWED`.

They raise `ValueError` for what they refuse."""


def installer(folder: Path) -> Installer:
    """Return what installs environments from a folder, by the site's policy."""
    roles = tuple((os.environ.get(offers.SIGNERS_VARIABLE) or " ".join(offers.SIGNERS)).split())
    authorities = RENEWED / "rootCA.pem"
    return Installer(folder, ENVIRONMENTS, authorities, site_environments.policy(), roles)


def keep() -> None:
    """Look at the spool until this process is ended."""
    environments, told, begun = installer(spool.FOLDER), "", False
    while True:
        problems = []
        for step in STEPS:
            try:
                step(spool.FOLDER, RENEWED)
            except Exception as error:
                # Whatever is in the spool, the other steps must go on.
                problems.append(f"{step.__module__.rpartition('.')[2]}: {error}")
        try:
            with _alone(waits=False):
                if not begun:
                    forget_unfinished(ENVIRONMENTS)
                begun = True
                environments.look()
        except Exception as error:
            problems.append(f"environments: {error}")
        if (text := "; ".join(problems)) and text != told:
            log.warning("not installed: %s", one_line(text, site_environments.TEXT))
        told = text
        time.sleep(EVERY)


def once(folder: Path) -> int:
    """Install the environments of a folder, and say what became of each. Return the exit code."""
    before = News.read(ENVIRONMENTS)
    with _alone(waits=True):
        for name in installer(folder).look():
            print(f"environment {name} is installed")
    news = News.read(ENVIRONMENTS)
    # What the spool had to tell is told again by the keeper.
    before.write(ENVIRONMENTS)
    _tell(news, "Then run ./site take again.")
    return 1 if news.refused else 0


def tell() -> int:
    """Say which environments wait for approval, and which were refused."""
    _tell(News.read(ENVIRONMENTS))
    return 0


def _tell(news: News, afterwards: str = "") -> None:
    for name, checksum in news.waiting.items():
        about = one_line(news.about.get(name, ""), site_environments.TEXT)
        print(f"environment {name} waits for your approval: {about}")
        print(f"  Let it in: ./site approve {one_line(checksum, 64)}")
    if news.waiting and afterwards:
        print(f"  {afterwards}")
    for name, why in news.refused.items():
        print(f"environment {name} is refused: {one_line(why, site_environments.TEXT)}")


def approve(checksum: str) -> int:
    """Approve a checksum. Return the exit code."""
    try:
        Approvals(ENVIRONMENTS).add(checksum)
    except ValueError as error:
        print(f"approve: {error}", file=sys.stderr)
        return 2
    print("approved")
    return 0


@contextmanager
def _alone(*, waits: bool) -> Iterator[None]:
    """Let only one process write into the environments at a time.

    A process that reads a file can lock it. So the file is where no app reads, and the keeper does not wait
    for it: the site's FLARE process may have been taken over.

    Raises:
        BlockingIOError: another process has it, and this one is not to wait.
    """
    with (RENEWED / ".lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BlockingIOError("another process installs packages just now") from None
        yield


def main(words: Sequence[str]) -> int:
    """Do what the command line says, and return the exit code."""
    match list(words):
        case []:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
            keep()
        case ["once", folder]:
            return once(Path(folder))
        case ["news"]:
            return tell()
        case ["approve", checksum]:
            return approve(checksum)
    print(f"keeper: expected nothing, once FOLDER, news or approve CHECKSUM, found {' '.join(words)!r}")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
