"""Find shared libraries that an environment's packages need and nothing provides, by reading files only."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

NAMES = {
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libgobject-2.0.so.0": "libglib2.0-0",
    "libmagic.so.1": "libmagic1",
    "libgfortran.so.5": "libgfortran5",
    "libportaudio.so.2": "libportaudio2",
    "libjpeg.so.62": "libjpeg62-turbo",
    "libOpenCL.so.1": "ocl-icd-libopencl1",
    "libxml2.so.2": "libxml2",
}
"""Debian packages with names that do not follow from the library's, or that are often asked for."""

PROVIDED = re.compile(
    r"(libc|libm|libdl|librt|libpthread|libutil|libresolv|libgcc_s|libstdc\+\+|ld-linux.*|linux-vdso)\.so.*"
    # A driver's libraries, which the machine with the GPU brings.
    r"|lib(cuda|nvidia-.*|nvcuvid|cudadebugger)\.so.*"
)
"""Libraries that every base has, or that no package brings."""

BROKEN = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
"""Errors of reading a file that a package has broken."""


def debian_package(library: str) -> str:
    """Return the package that brings a library, by the rule of Debian's policy (8.1): `libgomp.so.1` is
    `libgomp1`."""
    name = NAMES.get(library, library)
    name = re.sub(r"([0-9])\.so\.", r"\1-", name)
    name = re.sub(r"\.so(\.|$)", "", name)
    return name.replace("_", "-").lower()


def missing(site_packages: Path, provided: Iterable[str]) -> dict[str, set[str]]:
    """Return the missing libraries, and the distributions that need each.

    Args:
        site_packages: the environment's folder.
        provided: names of the libraries in the base, and in Debian packages beside it.
    """
    objects = [path for path in site_packages.rglob("*.so*") if path.is_file() and ".so" in path.name]
    here = {path.name for path in objects} | set(provided)
    owners = _owners(site_packages)
    found: dict[str, set[str]] = {}
    for path in objects:
        for library in _needed(path):
            if library not in here and not PROVIDED.fullmatch(library):
                owner = owners.get(path.relative_to(site_packages).as_posix(), path.name)
                found.setdefault(library, set()).add(owner)
    return found


def _needed(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            section = ELFFile(file).get_section_by_name(".dynamic")
            if isinstance(section, DynamicSection):
                # Tags of this kind have the attribute.
                yield from (str(getattr(tag, "needed")) for tag in section.iter_tags("DT_NEEDED"))  # noqa: B009
    except (ELFError, OSError, *BROKEN):
        return  # A text, such as a linker script, or a file that a package has broken.


def _owners(site_packages: Path) -> dict[str, str]:
    """Return the distribution that brought each file, by path."""
    owners = {}
    for record in site_packages.glob("*.dist-info/RECORD"):
        name = record.parent.name.split("-")[0]
        with record.open(newline="", errors="replace") as file, contextlib.suppress(csv.Error):
            owners.update({row[0]: name for row in csv.reader(file) if row})
    return owners
