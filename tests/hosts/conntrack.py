"""Forget all connections that this network namespace keeps for its NAT and firewall (ctnetlink's flush)."""

from __future__ import annotations

import os
import socket
import struct

NETLINK_NETFILTER = 12
DELETE = (1 << 8) | 2
"""A message to the part for connections (1): delete (2). Without a connection in it, it means all."""
REQUEST, ACKNOWLEDGE = 1, 4

if __name__ == "__main__":
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
        kernel.bind((0, 0))
        kernel.send(struct.pack("=IHHIIBBH", 20, DELETE, REQUEST | ACKNOWLEDGE, 1, 0, 0, 0, 0))
        (code,) = struct.unpack("=i", kernel.recv(4096)[16:20])
        if code:
            raise OSError(-code, os.strerror(-code))
