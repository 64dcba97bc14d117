"""Let FLARE's processes look for their configuration in the kit, and nowhere else.

FLARE (nvflare 2.9.0, `fuel/utils/config_factory.py`, `search_config_format`, and `config_service.py`,
`find_file_in_dir`) walks through its whole workspace for a file such as `fed_client.json`, `resources.json`
or `comm_config.json`, and takes the first. So an app that writes one into its job's folder would change the
configuration of FLARE's next process. And FLARE follows no links, but `startup` and `local` are links in our
images.

`images/sitecustomize.py` installs this in every FLARE process. `tests/unit/test_kit_search.py` guards that
FLARE looks so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from bridge.common.replaced import namespace_proxy
from bridge.job import replaced

KIT = ("startup", "local")
"""The folders of a workspace that hold its kit."""


def install() -> None:
    """Let FLARE look for files by `walk`, in this process."""
    for name in (replaced.CONFIG_WALK, replaced.FILE_WALK):
        replaced.replace(name, lambda _: namespace_proxy(os, walk=walk))


def walk(top: Any, *arguments: Any, **options: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
    """Replace `os.walk`: in a workspace, walk only its kit, without folders below it."""
    folders = [os.path.join(top, name) for name in KIT]  # noqa: PTH118 (as FLARE hands it over)
    if not all(map(os.path.isdir, folders)):
        yield from os.walk(top, *arguments, **options)
        return
    for folder in folders:
        for found, _, files in os.walk(folder):
            yield found, [], files
            break
