"""Answer the request of a site that makes its own key.

It shows the site, its organization and the fingerprint of its key, and asks. Compare the fingerprint with
the one that the site's administrator tells you in another way. The answer is the site's certificate: some
lines of text without a secret. At the site, `./site join ANSWER` takes them.

  ./flowerbed site approve hospital-c.request                  asks, and prints the answer
  ./flowerbed site approve - < mail.txt --fingerprint AA:BB:CC...
  ./flowerbed site approve hospital-c.request --output hospital-c.answer
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.common.meta import JOINS_FILE
from provisioning import revocation, state
from scripts import ca, core, provision
from scripts.json_object import JsonObject

if TYPE_CHECKING:
    from bridge.common import own_key

JSON = JsonObject(
    {
        "site": "the site's name",
        "fingerprint": "the SHA-256 fingerprint of its key",
        "last_day": "the last day of its certificate",
        "answer": "the lines for the site",
    }
)


def run(
    request: Annotated[
        str, typer.Argument(metavar="FILE", help="The request. - reads it from the terminal.")
    ],
    fingerprint: Annotated[
        str | None,
        typer.Option(metavar="F", help="Approve without asking, if the key has this fingerprint."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the answer into this file.")
    ] = None,
) -> dict[str, Any]:
    """Check a request, and answer it.

    Raises:
        core.UsageError: the request cannot be read, or nobody can be asked.
        core.Failure: it may not be approved.
    """
    from bridge.common import own_key  # Here, since cryptography takes a while.
    from provisioning import own_keys, renewal, signing

    text, project = _text(request), provision.load(provision.DEFAULT_PROJECT)
    folder = ca.folder()
    joins = _joins(folder.parent)
    try:
        asked = own_key.read_request(text)
        own_keys.check(asked, project, ca.read(folder), joins)
    except own_key.UnfitRequest as error:
        raise core.Failure(str(error)) from None
    core.say(f"{asked.site} of {asked.org} asks for a certificate. Its key has the fingerprint")
    core.say(f"  {asked.fingerprint}")
    if earlier := own_keys.earlier(ca.read(folder), asked):
        core.say(
            f"  {asked.site} has a certificate for another key, until {earlier.not_valid_after_utc.date()}. "
            "Once it has joined with the new key, the server refuses the old one."
        )
    _ask(asked.fingerprint, fingerprint, yes=yes)
    _issue(folder, asked)
    content = ca.read(folder)
    certificate = content[asked.site][own_keys.CERTIFICATE]
    answer = own_key.make_answer(certificate, renewal.trusted(content))
    _give(answer, output, asked.site)
    last = signing.load(certificate).not_valid_after_utc.date()
    return {
        "site": asked.site,
        "fingerprint": asked.fingerprint,
        "last_day": last.isoformat(),
        "answer": answer,
    }


def _issue(folder: Path, asked: own_key.KeyRequest) -> None:
    """Let provisioning issue the certificate."""
    from provisioning import own_keys

    with state.Lock(folder, lambda: core.say("  waiting for a provisioning to end")):
        content = ca.read(folder)
        before = dict(content)
        own_keys.accept(content, asked)
        state.save(folder, content)
    try:
        with core.led():
            provision.run()
    except core.Failure:
        with state.Lock(folder, lambda: None):
            state.save(folder, before)
        raise


def _text(name: str) -> str:
    if name == "-":
        if sys.stdin.isatty():
            core.say("Paste the request, then press Enter and Ctrl-D:")
        return sys.stdin.buffer.read(1_000_000).decode(errors="replace")
    try:
        return Path(name).read_bytes()[:1_000_000].decode(errors="replace")
    except OSError as error:
        raise core.UsageError(f"{name} cannot be read: {error.strerror}.") from None


def _joins(workspace: Path) -> dict[str, list[Mapping[str, Any]]]:
    """Return the join files that were made, by the site's name."""
    try:
        found = json.loads((workspace / revocation.FOLDER / JOINS_FILE).read_text())
    except FileNotFoundError:
        return {}
    return {str(name): list(items) for name, items in found.items()}


def _ask(found: str, wanted: str | None, *, yes: bool) -> None:
    """Let a person compare the fingerprint, unless that was done."""
    if wanted is not None:
        if _plain(wanted) != _plain(found):
            raise core.Failure(
                f"Expected a key with the fingerprint {wanted}, found {found}. Somebody may have put another "
                "request in its place. Nothing was answered."
            )
    elif not yes:
        if not sys.stdin.isatty():
            raise core.UsageError(
                "expected --fingerprint F, as the site's administrator tells it to you, or --yes."
            )
        core.say("Did the site's administrator tell you the same fingerprint? [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise core.Failure("Nothing was answered.")


def _plain(fingerprint: str) -> str:
    return fingerprint.replace(":", "").replace(" ", "").lower()


def _give(answer: str, output: Path | None, site: str) -> None:
    """Print the answer, or write it into a file."""
    if output is not None:
        output.write_text(answer)
        core.say(f"The answer is in {output}. Send it to {site}. There:  ./site join {output.name}")
        return
    core.say(f"Send these lines to {site}. There:  ./site join FILE")
    if not core.as_json:
        print(answer, end="", flush=True)
