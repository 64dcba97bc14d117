"""Send and receive folders as a tar."""

from __future__ import annotations

import contextlib
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from bridge.flare.console.call import ConsoleCall, ConsoleError

INPUT_LIMIT = 256 * 1024 * 1024
"""Bytes of all files of an app or a job: four times the limit of the host's side."""


@contextlib.contextmanager
def unpacked(call: ConsoleCall) -> Iterator[Path]:
    """Unpack the folder that came with a request: files and folders only, nothing outside it.

    The check is ours, since the Python 3.11.2 of Debian 12 has no extraction filters.
    """
    with tempfile.TemporaryDirectory() as folder:
        size = 0
        try:
            with tarfile.open(fileobj=call.payload, mode="r|*") as tar:
                for member in tar:
                    path = PurePosixPath(member.name)
                    if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                        raise ConsoleError(f"expected files below one folder, found {member.name[:200]!r}", 2)
                    size += member.size
                    if size > INPUT_LIMIT:
                        raise ConsoleError(f"expected at most {INPUT_LIMIT} bytes of files, found more", 2)
                    tar.extract(member, folder, set_attrs=False)
        except (tarfile.TarError, OSError) as error:
            raise ConsoleError(f"expected a tar on stdin: {error}", 2) from None
        yield Path(folder)


class _Out:
    def __init__(self, call: ConsoleCall) -> None:
        self.write = call.write


def send(call: ConsoleCall, folder: Path) -> None:
    """Answer with a folder's content."""
    with tarfile.open(fileobj=_Out(call), mode="w|") as tar:  # type: ignore[call-overload]
        for path in sorted(folder.iterdir()):
            tar.add(path, arcname=path.name)
