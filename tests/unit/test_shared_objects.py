"""Shared libraries that packages need: read in files of ELF that are made by hand here."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts import shared_objects


def elf(*needed: str) -> bytes:
    """Return a shared object of 64 bits that needs these libraries, with no code in it."""
    strings, offsets = b"\0", []
    for name in needed:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    dynamic = b"".join(struct.pack("<qQ", 1, offset) for offset in offsets) + struct.pack("<qQ", 0, 0)
    names = b"\0.dynstr\0.dynamic\0.shstrtab\0"
    parts = [strings, dynamic, names]
    at = [64, 64 + len(strings), 64 + len(strings) + len(dynamic)]
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(3, 62, 1, 0, 0, 64 + sum(map(len, parts)), 0, 64, 0, 0, 64, 4, 3),
    )
    sections = b"\0" * 64
    for title, kind, where, size, link, entry in (
        (1, 3, at[0], len(strings), 0, 0),
        (9, 6, at[1], len(dynamic), 1, 16),
        (18, 3, at[2], len(names), 0, 0),
    ):
        sections += struct.pack("<IIQQQQIIQQ", title, kind, 0, 0, where, size, link, 0, 1, entry)
    return header + b"".join(parts) + sections


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A site-packages with two distributions."""
    put(tmp_path, "xgboost-3.0", {"xgboost/lib/libxgboost.so": elf("libgomp.so.1", "libc.so.6", "libm.so.6")})
    put(tmp_path, "numpy-2.4", {"numpy/core.cpython-311-x86_64-linux-gnu.so": elf("libc.so.6")})
    return tmp_path


def put(folder: Path, distribution: str, files: dict[str, bytes]) -> None:
    record = folder / f"{distribution}.dist-info" / "RECORD"
    record.parent.mkdir(parents=True)
    record.write_text("".join(f"{path},sha256=x,1\n" for path in files))
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def test_a_missing_library_is_named_with_its_distribution(packages: Path) -> None:
    assert shared_objects.missing(packages, []) == {"libgomp.so.1": {"xgboost"}}


@pytest.mark.parametrize("provided", [["libgomp.so.1"], iter(["x", "libgomp.so.1"])])
def test_what_the_base_has_is_not_missing(packages: Path, provided: Sequence[str]) -> None:
    assert shared_objects.missing(packages, provided) == {}


def test_a_packages_own_library_is_not_missing(packages: Path) -> None:
    put(packages, "other-1", {"other.libs/libgomp.so.1": elf()})
    assert shared_objects.missing(packages, []) == {}


def test_what_the_base_or_a_driver_always_has_is_not_missing(packages: Path) -> None:
    libraries = ("libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "ld-linux-x86-64.so.2", "libcuda.so.1")
    put(packages, "torch-2", {"torch/lib/libtorch.so": elf(*libraries, "libnvidia-ml.so.1")})
    assert set(shared_objects.missing(packages, [])) == {"libgomp.so.1"}


def test_a_file_of_no_distribution_is_named_itself(packages: Path) -> None:
    (packages / "stray.so.2").write_bytes(elf("libGL.so.1"))
    assert shared_objects.missing(packages, [])["libGL.so.1"] == {"stray.so.2"}


@pytest.mark.parametrize(
    "content", [b"", b"GROUP ( libx.so.1 )", b"\x7fELF", elf("liba.so.1")[:100], b"\x7fELF" + b"\xff" * 4096]
)
def test_other_files_than_shared_objects_are_skipped(packages: Path, content: bytes) -> None:
    (packages / "odd.so").write_bytes(content)
    (packages / "dangling.so").symlink_to("/nowhere")
    (packages / "folder.so").mkdir()
    assert shared_objects.missing(packages, []) == {"libgomp.so.1": {"xgboost"}}


def test_an_extension_module_of_this_python(packages: Path) -> None:
    """Return one that a linker has made."""
    import _ctypes

    (packages / "real.so").write_bytes(Path(_ctypes.__file__).read_bytes())
    assert set(shared_objects.missing(packages, [])) <= {"libgomp.so.1", "libffi.so.8", "libffi.so.7"}


@pytest.mark.parametrize(
    ("library", "package"),
    [
        ("libgomp.so.1", "libgomp1"),
        ("libGL.so.1", "libgl1"),
        ("libglib-2.0.so.0", "libglib2.0-0"),
        ("libsndfile.so.1", "libsndfile1"),
        ("libxml2.so.2", "libxml2"),
        ("libX11.so.6", "libx11-6"),
        ("libSM.so.6", "libsm6"),
        ("libfoo_bar.so.3", "libfoo-bar3"),
        ("libhdf5.so", "libhdf5"),
    ],
)
def test_the_package_of_a_library(library: str, package: str) -> None:
    assert shared_objects.debian_package(library) == package


def test_a_file_that_a_package_has_broken_ends_nothing(tmp_path: Path) -> None:
    """Its text is the package's: the file, and the list of files."""
    whole = elf("libgomp.so.1")
    files = {f"mine/{at}.so": whole[:at] + b"\xff" * 4 + whole[at + 4 :] for at in range(4, len(whole), 3)}
    files |= {f"mine/to{at}.so": whole[:at] for at in range(4, len(whole), 7)}
    put(tmp_path, "mine-1.0", {"mine/whole.so": whole, **files})
    (tmp_path / "mine-1.0.dist-info" / "RECORD").write_bytes(b"\xff\0" + b'"' + b"x" * 200_000)
    assert "libgomp.so.1" in shared_objects.missing(tmp_path, [])
