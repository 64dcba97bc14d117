"""The options of `site add`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Org = Annotated[
    str | None, typer.Option(metavar="ORG", help="The site's organization.", show_default="the server's")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A key of the site in project.yml, with its value in YAML. May be given more than once.",
    ),
]
ConnectTo = Annotated[
    str | None,
    typer.Option(metavar="RELAY", help="The relay that the site connects to.", show_default="the server"),
]
Role = Annotated[
    str | None, typer.Option(metavar="ROLE", help="For a person, whose name is an e-mail address: the role.")
]
Relay = Annotated[
    int | None,
    typer.Option(min=1, max=65535, metavar="PORT", help="Add a relay, which listens on this port."),
]
Address = Annotated[
    str | None, typer.Option(metavar="HOST", help="With --relay: the name by which sites dial it.")
]
OwnKey = Annotated[bool, typer.Option("--own-key", help="Let the site make its key, which never leaves it.")]
Passphrase = Annotated[
    bool, typer.Option("--passphrase", help="Ask for a passphrase, and lock the key in the file with it.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Lock it with the passphrase in the first line of this file."),
]
Days = Annotated[int, typer.Option(min=1, max=365, metavar="N", help="How many days the file can be used.")]
Output = Annotated[Path | None, typer.Option(metavar="FILE", help="The join file.", show_default="NAME.join")]
WithImages = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Also put the runtime image and the environments of apps into this folder, such as a stick's. "
        "At the site: `sh NAME.join --images FOLDER`.",
    ),
]
FromServer = Annotated[
    bool | None,
    typer.Option(
        "--from-server/--no-from-server",
        help="Let the site fetch the runtime image from the server, over its one port. Not with `grpc`, nor "
        "for a site behind a relay, nor with `--own-key` or `--passphrase`. `--no-from-server` does not.",
        show_default="for a site, where it works and no registry or folder has the image",
    ),
]
