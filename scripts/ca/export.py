"""Move the CA's key out of the federation's folder, into a file on another medium.

Whoever has that key can make certificates for any name. Without it here, an intruder cannot. Verbs that sign
then read the file that FLOWERBED_CA_KEY names, and say so if it is not there: `provision` with something new,
`renew`, `site add` and `site approve`. All other verbs work without it.

  ./flowerbed ca export /media/stick/ca.key                 asks for a passphrase
  ./flowerbed ca export /media/stick/ca.key --no-passphrase
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning import dotenv, state
from scripts import ca, core, passphrases
from scripts.json_object import JsonObject

JSON = JsonObject(
    {
        "file": "where the key is now",
        "encrypted": "whether a passphrase protects it",
    }
)


def run(
    file: Annotated[Path, typer.Argument(help="The new file. Its folder must be there.", show_default=False)],
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A file with the passphrase in its first line.", show_default=False
        ),
    ] = None,
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Write the key without a passphrase.")
    ] = False,
) -> dict[str, Any]:
    """Move the key.

    Raises:
        core.Failure: it is elsewhere already, or the file cannot be written.
        core.UsageError: there is no passphrase.
    """
    from provisioning import ca_key, renewal  # Here, since cryptography takes a while.

    folder, file = ca.folder(), file.expanduser().absolute()
    if file.is_relative_to(folder.parent):
        raise core.UsageError(f"{file} is in the federation's own folder: name a file on another medium.")
    with state.Lock(folder, lambda: core.say("  waiting for a provisioning to end")):
        content = ca.read(folder)
        if ca_key.is_elsewhere(content):
            where = ca_key.setting(ca_key.FILE) or "in a file that no setting names"
            raise core.Failure(f"The CA's key is elsewhere already: {where}.")
        if content.get(renewal.NEXT_KEY):
            raise core.Failure(
                "A step to a new CA is under way, and the new CA's key would stay here. Take the next step "
                "first: ./flowerbed renew --new-ca"
            )
        key = ca_key.load(content)
        passphrase = None if no_passphrase else passphrases.new(passphrase_file)
        _write(file, ca_key.encrypted(key, passphrase))
        del content[ca_key.KEY]
        state.save(folder, content, forget=True)
    dotenv.write(core.ROOT / ".env", {ca_key.FILE: str(file)})
    core.say(
        f"The CA's key is in {file} now, and no longer in {folder}. Keep a second copy of that file: nobody "
        f"can make the key again. Earlier backups of {folder} have it too."
    )
    return {"file": str(file), "encrypted": passphrase is not None}


def _write(file: Path, pem: bytes) -> None:
    """Write the only copy of the key, and read it again. Never over another file."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(pem)
            stream.flush()
            os.fsync(stream.fileno())
        if file.read_bytes() != pem:
            raise OSError(0, "it has other bytes than were written")
    except FileExistsError:
        raise core.Failure(f"{file} is there already: name another file. Nothing was changed.") from None
    except OSError as error:
        raise core.Failure(f"{file} cannot be written: {error.strerror}. Nothing was changed.") from None
