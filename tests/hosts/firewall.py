"""Set a host's own firewall for what leaves it, from its containers too."""

from __future__ import annotations

from collections.abc import Callable

CHAIN = "FB-HOSTS"


class Firewall:
    """Rules for packets that leave a host by one of its lines. Destinations are `address`, `address:port`."""

    def __init__(self, inside: Callable[..., str]) -> None:
        """Set nothing yet. `inside` runs a program in the host's network namespace."""
        self._inside = inside

    def open(self) -> None:
        """Let all packets through, as at the beginning."""
        self._chain()

    def only_allow(self, *destinations: str) -> None:
        """Let packets to these destinations through, names' answers, and replies. Refuse all others."""
        self._chain()
        replies = ("-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "--ctdir", "REPLY")
        self._add(*replies, "-j", "RETURN")
        self._add("-p", "udp", "--dport", "53", "-j", "RETURN")
        for destination in destinations:
            self._add(*_to(destination), "-j", "RETURN")
        self._add("-j", "REJECT")

    def drop(self, *destinations: str) -> None:
        """Lose packets to these destinations in silence, also those of open connections."""
        self._each(destinations, "DROP")

    def reject(self, *destinations: str) -> None:
        """Refuse packets to these destinations, also those of open connections."""
        self._each(destinations, "REJECT")

    def drop_unknown(self) -> None:
        """Lose packets of connections that began before `Machine.forget_connections`."""
        self._chain()
        self._add("-p", "tcp", "!", "--syn", "-m", "conntrack", "--ctstate", "NEW,INVALID", "-j", "DROP")

    def _each(self, destinations: tuple[str, ...], target: str) -> None:
        self._chain()
        for destination in destinations:
            self._add(*_to(destination), "-j", target)

    def _add(self, *rule: str) -> None:
        self._inside("iptables", "-A", CHAIN, *rule)

    def _chain(self) -> None:
        """Make the chain, or empty it."""
        self._inside("iptables", "-N", CHAIN, check=False)
        self._inside("iptables", "-F", CHAIN)
        for hook in ("OUTPUT", "FORWARD", "DOCKER-USER"):
            # An engine keeps the last one before its own rules, which accept what its containers send.
            jump = (hook, "-o", "eth+", "-j", CHAIN)
            self._inside("iptables", "-D", *jump, check=False)
            self._inside("iptables", "-I", *jump, check=hook != "DOCKER-USER")


def _to(destination: str) -> tuple[str, ...]:
    address, _, port = destination.partition(":")
    return ("-d", address, *(("-p", "tcp", "--dport", port) if port else ()))
