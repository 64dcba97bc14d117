"""Answer questions for names, on one address of the test hosts' network.

    python -P -m tests.hosts.names ADDRESS FILE     FILE has lines as /etc/hosts has them, and may change

A name that the file lacks does not exist. Only addresses are asked here.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from pathlib import Path

A, AAAA, INTERNET = 1, 28, 1
NO_SUCH_NAME = 3
SECONDS_VALID = 0
"""Nobody keeps an answer: a test may change the file at any time."""


def answer(question: bytes, known: str) -> bytes:
    """Return the reply to a question, by lines as /etc/hosts has them."""
    number, flags, _, _, _, _ = struct.unpack("!6H", question[:12])
    labels, at = [], 12
    while size := question[at]:
        labels.append(question[at + 1 : at + 1 + size].decode())
        at += 1 + size
    asked = question[12 : at + 5]
    kind = struct.unpack("!H", question[at + 1 : at + 3])[0]
    name = ".".join(labels).lower()
    lines = [line.split() for line in known.splitlines() if line.strip()]
    addresses = [ipaddress.ip_address(line[0]) for line in lines if name in map(str.lower, line[1:])]
    size_of = {A: 4, AAAA: 16}.get(kind)
    records = b"".join(
        # 0xC00C points to the name in the question.
        struct.pack("!3HIH", 0xC00C, kind, INTERNET, SECONDS_VALID, len(address.packed)) + address.packed
        for address in addresses
        if len(address.packed) == size_of
    )
    fitting = sum(len(address.packed) == size_of for address in addresses)
    # A response, by the one that knows, with recursion if it was asked for.
    said = 0x8480 | (flags & 0x0100) | (0 if addresses else NO_SUCH_NAME)
    return struct.pack("!6H", number, said, 1, fitting, 0, 0) + asked + records


def serve(address: str, file: Path) -> None:
    """Answer for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((address, 53))
        while True:
            question, sender = listener.recvfrom(512)
            try:
                listener.sendto(answer(question, file.read_text()), sender)
            except (struct.error, IndexError, UnicodeDecodeError):
                continue


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
