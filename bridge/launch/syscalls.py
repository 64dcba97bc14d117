"""Refuse the system calls that could get a process past Landlock, by a seccomp filter.

Landlock knows TCP by the calls `bind` and `connect` on a TCP socket, and files by path. It does not see:

- other protocols that end in TCP (MPTCP, SMC)
- data that goes out with the first packet (TCP Fast Open)
- memory and queues that have no path (System V, POSIX queues)
- changes of other processes' limits and priorities
- watches on files

A filter sees numbers only, no paths and no addresses. So this filter refuses the calls that numbers tell
apart, and Landlock covers the rest.

A refused call gets an error, as from a kernel that does not have it, so that programs fall back. Nobody is
killed. `sched_setaffinity` stays open. OpenMP calls it with the ids of its threads, and a filter cannot tell
those from other processes' ids.

Standard library only, because it is imported beside every SuperLink and SuperNode.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
from typing import NamedTuple

Instruction = tuple[int, int, int, int]
"""An instruction of the kernel's BPF: code, jump if true, jump if false, value."""


class Machine(NamedTuple):
    """The differences between processors."""

    arch: int
    """The kernel's AUDIT_ARCH number."""
    numbers: dict[str, int]
    """See `NUMBERS`."""
    foreign: tuple[tuple[int, int], ...] = ()
    """Ranges of numbers of another convention for the same calls: first and last."""


NUMBERS = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "socket": (41, 198),
    "sendto": (44, 206),
    "sendmsg": (46, 211),
    "socketpair": (53, 199),
    "setsockopt": (54, 208),
    "semget": (64, 190),
    "msgget": (68, 186),
    "truncate": (76, 45),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "mq_open": (240, 180),
    "ioprio_set": (251, 30),
    "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262),
    "prlimit64": (302, 261),
    "sendmmsg": (307, 269),
    "sched_setattr": (314, 274),
    "seccomp": (317, 277),
    "io_uring_setup": (425, 425),
}
"""Numbers of the system calls that are named here, on x86_64 and aarch64 (Linux `unistd_64.h`)."""

MACHINES = {
    "x86_64": Machine(
        0xC000003E,
        {name: numbers[0] for name, numbers in NUMBERS.items()},
        # x32's, which kernels before 5.4 accept without its bit too.
        ((512, 547), (0x40000000, 0xFFFFFFFF)),
    ),
    "aarch64": Machine(0xC00000B7, {name: numbers[1] for name, numbers in NUMBERS.items()}),
}
"""By `os.uname().machine`."""

AF_NETLINK = 16
"""Not in `socket` on macOS, where the recipe imports this module and runs none of it."""

DOMAINS = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, AF_NETLINK)
TYPES = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
STREAM_PROTOCOLS = (0, socket.IPPROTO_TCP)
TYPE_MASK = 0xF
"""The bits of a socket's type that are the type. The rest are flags."""

MSG_FASTOPEN = 0x20000000
TCP_ULP = 31
"""The option that turns a TCP socket into one of SMC."""
PRIO_PROCESS, IOPRIO_WHO_PROCESS = 0, 1

SET_MODE_FILTER, SPEC_ALLOW = 1, 1 << 2
"""Arguments of the call `seccomp`. The flag keeps older kernels from slowing the processor down, as engines
use it."""

PR_SET_NO_NEW_PRIVS = 38

LOAD, AND, RETURN, EQUAL, AT_LEAST, ABOVE, ANY_BIT = 0x20, 0x54, 0x06, 0x15, 0x35, 0x25, 0x45
"""BPF codes: load a word, and, return, and four comparisons with a value."""

ALLOW, ERROR = 0x7FFF0000, 0x00050000
NUMBER_AT, ARCH_AT, ARGUMENTS_AT = 0, 4, 16
"""Places of the fields in the kernel's `seccomp_data`. Arguments have eight bytes, the low half first."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def machine() -> Machine | None:
    """Return the system calls of this processor, or None if it is not known here."""
    # A 32-bit program on a 64-bit kernel has other numbers.
    return MACHINES.get(os.uname().machine) if sys.maxsize > 1 << 32 else None


def available() -> bool:
    """Return whether this kernel accepts a filter from this program."""
    here = machine()
    if here is None:
        return False
    # A kernel that has filters goes on to read this one, at a null address.
    _libc.syscall(here.numbers["seccomp"], SET_MODE_FILTER, SPEC_ALLOW, None)
    return ctypes.get_errno() == errno.EFAULT


def refuse(*, truncate: bool) -> None:
    """Install the filter for this thread and its later children. It cannot be removed.

    Args:
        truncate: true to refuse `truncate` by path too, for a Landlock that does not know it.

    Raises:
        OSError: the kernel refuses it.
    """
    here = machine()
    assert here is not None
    code = program(here, truncate=truncate)
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    filter_ = _Program(len(code), packed)
    if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refuses no_new_privs")
    if _libc.syscall(here.numbers["seccomp"], SET_MODE_FILTER, SPEC_ALLOW, ctypes.byref(filter_)):
        error = ctypes.get_errno()
        raise OSError(error, f"the kernel refuses a filter of system calls: {os.strerror(error)}")


def program(here: Machine, *, truncate: bool) -> list[Instruction]:
    """Return the filter, in the kernel's BPF."""
    code = [(LOAD, 0, 0, ARCH_AT), (EQUAL, 1, 0, here.arch), _error(errno.ENOSYS), (LOAD, 0, 0, NUMBER_AT)]
    for first, last in here.foreign:
        code += [(AT_LEAST, 0, 2, first), (ABOVE, 1, 0, last), _error(errno.ENOSYS)]
    for name, checks in _rules(truncate).items():
        body = [*checks, (RETURN, 0, 0, ALLOW)]
        code += [(EQUAL, 0, len(body), here.numbers[name]), *body]
    return [*code, (RETURN, 0, 0, ALLOW)]


def _rules(truncate: bool) -> dict[str, list[Instruction]]:
    """Return, by call, instructions that return an error if the call is to be refused, and else run past
    their end."""
    domain = _only(0, DOMAINS, errno.EAFNOSUPPORT)
    no_internet = [
        (LOAD, 0, 0, _argument(0)),
        (EQUAL, 2, 0, socket.AF_INET),
        (EQUAL, 1, 0, socket.AF_INET6),
        (RETURN, 0, 0, ALLOW),
    ]
    kind = _only(1, TYPES, errno.EPROTONOSUPPORT, mask=TYPE_MASK)
    # The type is still loaded.
    no_stream = [(EQUAL, 1, 0, int(socket.SOCK_STREAM)), (RETURN, 0, 0, ALLOW)]
    protocol = _only(2, STREAM_PROTOCOLS, errno.EPROTONOSUPPORT)
    # OpenSSL uses it to ask for TLS in the kernel, where that is switched on, and continues without.
    other_tcp = [
        (LOAD, 0, 0, _argument(1)),
        (EQUAL, 1, 0, socket.IPPROTO_TCP),
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, _argument(2)),
        (EQUAL, 0, 1, TCP_ULP),
        _error(errno.ENOENT),
    ]
    itself = _only(0, (0,), errno.EPERM)
    rules = {
        "socket": [*domain, *no_internet, *kind, *no_stream, *protocol],
        "socketpair": domain,
        "setsockopt": other_tcp,
        "sendto": _without(3, MSG_FASTOPEN, errno.EOPNOTSUPP),
        "sendmsg": _without(2, MSG_FASTOPEN, errno.EOPNOTSUPP),
        "sendmmsg": _without(3, MSG_FASTOPEN, errno.EOPNOTSUPP),
        # Its operations pass no filter.
        "io_uring_setup": [_error(errno.ENOSYS)],
        "prlimit64": itself,
        "sched_setscheduler": itself,
        "sched_setparam": itself,
        "sched_setattr": itself,
        # Not for groups or users. 0 means one's own there too, and other jobs have the same user.
        "setpriority": [*_only(0, (PRIO_PROCESS,), errno.EPERM), *_only(1, (0,), errno.EPERM)],
        "ioprio_set": [*_only(0, (IOPRIO_WHO_PROCESS,), errno.EPERM), *_only(1, (0,), errno.EPERM)],
        "inotify_add_watch": [_error(errno.EACCES)],
        "fanotify_init": [_error(errno.EPERM)],
        **{name: [_error(errno.ENOSYS)] for name in ("shmget", "shmat", "semget", "msgget", "mq_open")},
    }
    if truncate:
        rules["truncate"] = [_error(errno.EACCES)]
    return rules


def _only(
    argument: int, values: tuple[int, ...], number: int, *, mask: int | None = None
) -> list[Instruction]:
    """Return the error `number` unless an argument is one of `values`."""
    masked = [] if mask is None else [(AND, 0, 0, mask)]
    equal = [(EQUAL, len(values) - place, 0, int(value)) for place, value in enumerate(values)]
    return [(LOAD, 0, 0, _argument(argument)), *masked, *equal, _error(number)]


def _without(argument: int, bit: int, number: int) -> list[Instruction]:
    """Return the error `number` if an argument has a bit."""
    return [(LOAD, 0, 0, _argument(argument)), (ANY_BIT, 0, 1, bit), _error(number)]


def _argument(position: int) -> int:
    """Return the place of an argument. All that are looked at are ints for the kernel, which ignores their
    high half."""
    return ARGUMENTS_AT + 8 * position


def _error(number: int) -> Instruction:
    return (RETURN, 0, 0, ERROR | number)
