"""Confine a process and its children, by the kernel's Landlock and a filter of its system calls.

    python -I -S sandbox.py

prints the abilities of this kernel, as one JSON object.

A process that has entered a policy can never leave it, and it needs no privilege to enter one. Landlock
covers files by path, TCP ports, and from Linux 6.12 on signals and abstract Unix sockets. A filter refuses
the system calls that get past Landlock (`syscalls.py`). Neither covers UDP, `chmod`, or the question who may
see that a file exists. A confined process can trace only processes that are confined with it. So it reads the
memory and the environment of no other.

Standard library only, and little of it, because it is imported beside every SuperLink and SuperNode. The
system calls have no wrapper in the C library. Their numbers are the same on every architecture (Linux
`include/uapi/linux/landlock.h`).
"""

import ctypes
import json
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2]))
from bridge.common.errors import FlowerbedError
from bridge.launch import syscalls

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""The system calls."""

VERSION_FLAG = 1
PATH_BENEATH, NET_PORT = 1, 2
"""Kinds of rules."""

PR_SET_NO_NEW_PRIVS = 38

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << bit for bit in range(6))
MAKE_DIR, MAKE_REG = 1 << 7, 1 << 8
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
"""Rights to files, those that are named here."""

FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All rights to files that a kernel knows, by the first ABI that does."""

OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""Rights that a rule for a file may give. All others are a folder's."""

READ = EXECUTE | READ_FILE | READ_DIR
ALL = (1 << 16) - 1
DEVICES = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV
SHARED = READ_FILE | WRITE_FILE | TRUNCATE | MAKE_REG | REMOVE_FILE | MAKE_DIR | REMOVE_DIR
"""Without READ_DIR: the names there are random, and another job's cannot be listed."""
OWN_PROCESS = READ_FILE | READ_DIR | WRITE_FILE

BIND_TCP, CONNECT_TCP = 1, 2
SCOPE_ABSTRACT, SCOPE_SIGNAL = 1, 2

FILES_ABI, TCP_ABI, SIGNALS_ABI = 1, 4, 6
"""The first ABI that can confine files, TCP ports and signals: Linux 5.13, 6.7 and 6.12."""
TRUNCATE_ABI = 3
"""The first that knows `truncate`: Linux 6.2."""

HIDDEN = (
    *("kit", "renewed", "renewals", "offers", "spool", "workspace", "policy", "apps", "tracking"),
    *("proc", "tmp", "run", "root", "home", "dev"),
)
"""Entries of the container's top folder that no app reads, or only in part. All others are the image's, or
data."""

PROC = (
    "cgroups",
    "cpuinfo",
    "devices",
    "driver",
    "filesystems",
    "loadavg",
    "meminfo",
    "stat",
    "sys",
    "uptime",
    "version",
    "vmstat",
)
"""Entries of /proc that describe the machine and no process."""

Ranges = tuple[tuple[int, int], ...]
"""Ports, each range with its first and last."""

_libc = ctypes.CDLL(None, use_errno=True)
_pins: list[int] = []
"""Open descriptors of files in /proc. The kernel recreates those inodes when nobody holds them, and then no
rule fits them."""


class Policy(NamedTuple):
    """The permissions of a process. It consists of tuples, strings and numbers, so that it can be passed on
    as JSON."""

    readable: tuple[str, ...] = ()
    """Files and folders. A policy with no file at all confines no files."""
    writable: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    """Devices, and folders of them, which can be used but not made."""
    shared: tuple[str, ...] = ()
    """Folders for memory that processes share."""
    own_process: bool = False
    """True if only this process and `PROC` may be read in /proc. Its children then cannot read their own."""
    connect: Ranges | None = None
    """TCP ports that may be connected to, or None for any."""
    bind: Ranges | None = None
    """TCP ports that may be listened on (0: one that the kernel chooses), or None for any."""
    scoped: bool = False
    """True if signals and abstract Unix sockets reach only processes that are confined together."""
    filtered: bool = False
    """True if the system calls that get past the rest are refused (`syscalls.py`)."""

    def to_json(self) -> str:
        """Return the policy as text."""
        return json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> "Policy":
        """Return the policy that `to_json` has written."""
        return cls(*json.loads(text))


class SandboxError(FlowerbedError, OSError):
    """Raised when the kernel refuses a policy that it should know."""


def abi() -> int:
    """Return the kernel's Landlock ABI, or 0 if it has none, or if it is switched off."""
    return max(0, int(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG))))


def level(version: int, filters: bool = True) -> str:
    """Return the parts that an ABI confines, on a kernel with or without system call filters, for users."""
    if version < FILES_ABI:
        return "nothing (no Landlock)"
    parts = ["files"]
    if version >= TCP_ABI:
        parts.append("TCP ports")
    if version >= SIGNALS_ABI:
        parts.append("signals")
    filtered = ", system calls (seccomp)" if filters else ""
    return f"{', '.join(parts)} (Landlock ABI {version}){filtered}"


def missing(version: int, filters: bool = True) -> str:
    """Return the parts that such a kernel cannot confine, each with the first version that can, or ""."""
    parts = []
    if version < FILES_ABI:
        parts.append("files (Linux 5.13, with landlock among the kernel's security modules)")
    if version < TCP_ABI:
        parts.append("TCP ports (Linux 6.7)")
    if version < SIGNALS_ABI:
        parts.append("signals (Linux 6.12)")
    if not filters:
        parts.append("system calls (seccomp filters, on x86-64 or aarch64)")
    return ", ".join(parts)


def top_folders(root: str = "/", hidden: Iterable[str] = HIDDEN) -> tuple[str, ...]:
    """Return the container's top folders without the hidden ones. Data mounted anywhere is thus included."""
    with os.scandir(root) as entries:
        return tuple(sorted(e.path for e in entries if e.name not in hidden and not e.is_symlink()))


def enter(policy: Policy) -> int:
    """Confine this thread and its later children, as far as the kernel can. Returns the kernel's ABI.

    Raises:
        SandboxError: the kernel has Landlock, or filters, and refuses the policy.
    """
    version = abi()
    if version >= FILES_ABI:
        _enter_landlock(policy, version)
    if policy.filtered and syscalls.available():
        try:
            syscalls.refuse(truncate=version < TRUNCATE_ABI)
        except OSError as error:
            raise SandboxError(*error.args) from None
    return version


def _enter_landlock(policy: Policy, version: int) -> None:
    files = _files(policy)
    handled_fs = FILE_RIGHTS[max(first for first in FILE_RIGHTS if first <= version)] if files else 0
    handled_net = 0
    if version >= TCP_ABI:
        handled_net = BIND_TCP * (policy.bind is not None) | CONNECT_TCP * (policy.connect is not None)
    scopes = (SCOPE_ABSTRACT | SCOPE_SIGNAL) if policy.scoped and version >= SIGNALS_ABI else 0
    if not handled_fs | handled_net | scopes:
        return
    attributes = (ctypes.c_uint64 * 3)(handled_fs, handled_net, scopes)
    size = 8 if version < TCP_ABI else 16 if version < SIGNALS_ABI else 24
    ruleset = _call(CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path, rights in files:
            _allow_path(ruleset, path, rights & handled_fs)
        for right, ranges in ((BIND_TCP, policy.bind), (CONNECT_TCP, policy.connect)):
            if handled_net & right:
                _allow_ports(ruleset, right, ranges or ())
        if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise SandboxError(ctypes.get_errno(), "the kernel refuses no_new_privs")
        _call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _files(policy: Policy) -> list[tuple[str, int]]:
    files = [(path, READ) for path in policy.readable]
    files += [(path, ALL) for path in policy.writable]
    files += [(path, DEVICES) for path in policy.devices]
    files += [(path, SHARED) for path in policy.shared]
    if policy.own_process:
        files += [(f"/proc/{os.getpid()}", OWN_PROCESS), *((f"/proc/{name}", READ) for name in PROC)]
    return files


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    """Give rights to a path and all below it. A missing path needs none."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= OF_FILES
        rule = rights.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
        _call(ADD_RULE, ctypes.c_int(ruleset), PATH_BENEATH, ctypes.c_char_p(rule), ctypes.c_uint32(0))
    finally:
        if path.startswith("/proc/"):
            _pins.append(descriptor)
        else:
            os.close(descriptor)


def _allow_ports(ruleset: int, right: int, ranges: Ranges) -> None:
    rule = (ctypes.c_uint64 * 2)(right, 0)
    add, own, no_flags = _libc.syscall, ctypes.c_int(ruleset), ctypes.c_uint32(0)
    for first, last in ranges:
        for port in range(first, last + 1):
            rule[1] = port
            if add(ADD_RULE, own, NET_PORT, rule, no_flags):
                raise SandboxError(ctypes.get_errno(), f"Landlock refuses a rule for port {port}")


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise SandboxError(error, f"Landlock's system call {number} failed: {os.strerror(error)}")
    return result


if __name__ == "__main__":
    found = (abi(), syscalls.available())
    told = {"abi": found[0], "filters": found[1], "level": level(*found), "missing": missing(*found)}
    print(json.dumps(told))
