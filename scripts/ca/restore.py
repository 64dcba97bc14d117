"""Put the CA's key back into the federation's folder.

It undoes `ca export`. The file stays as it is.

  ./flowerbed ca restore /media/stick/ca.key
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning import dotenv, state
from scripts import ca, core
from scripts.json_object import JsonObject

JSON = JsonObject({"file": "the file that had the key"})


def run(
    file: Annotated[
        Path | None,
        typer.Argument(help="The file that has the key. Without it: FLOWERBED_CA_KEY.", show_default=False),
    ] = None,
) -> dict[str, Any]:
    """Put the key back.

    Raises:
        core.Failure: it is here already, or the file has another.
    """
    from provisioning import ca_key  # Here, since cryptography takes a while.

    folder = ca.folder()
    with state.Lock(folder, lambda: core.say("  waiting for a provisioning to end")):
        content = ca.read(folder)
        if not ca_key.is_elsewhere(content):
            raise core.Failure(f"The CA's key is here already, in {folder}.")
        if file is not None:
            os.environ[ca_key.FILE] = str(file)
        try:
            key = ca_key.load(content)
        except ca_key.NoKey as error:
            raise core.Failure(str(error)) from None
        content[ca_key.KEY] = ca_key.encrypted(key, None).decode()
        state.save(folder, content)
    where = ca_key.setting(ca_key.FILE)
    dotenv.write(core.ROOT / ".env", {ca_key.FILE: ""})
    core.say(
        f"The CA's key is in {folder} again. {where} has it too: remove that file, or keep it as a copy."
    )
    return {"file": where}
