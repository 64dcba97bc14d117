"""Know which rounds of a run have begun, even if an app counts them more than once.

An app may call `strategy.start` repeatedly, for cross-validation for example, and each call counts its rounds
from 1. A late message of an old round starts no new count. Flower writes into each message when the ServerApp
made it, and that time tells the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TRAIN, EVALUATE = "train", "evaluate"


@dataclass
class _Start:
    """One count of rounds: from a call of `strategy.start` to the next."""

    after: float
    """The time of the last message seen before this start."""
    created: float
    """The time of the message that revealed this start."""
    first: tuple[int, str]
    """That message's round and kind."""
    begun: set[int] = field(default_factory=set)
    evaluated: set[int] = field(default_factory=set)

    def has(self, message: tuple[int, str], created: float) -> bool:
        """Return whether the message belongs to this start, given that it belongs to no later one. The
        messages to other sites are made moments before or after the one that was seen first."""
        return created >= self.created or (created > self.after and message == self.first)


class Rounds:
    """The rounds that have begun, by the number of the start and by their number. Starts count from 1."""

    def __init__(self) -> None:
        self._starts = [_Start(0.0, 0.0, (0, ""))]
        self._number, self._created = 0, 0.0
        self._answered: dict[str, tuple[int, int, set[str]]] = {}

    @property
    def start(self) -> int:
        """The latest start."""
        return len(self._starts)

    def begun(self, start: int, number: int) -> bool:
        """Return whether this round has begun."""
        return number in self._starts[start - 1].begun

    def answered(self, site: str, start: int, number: int, message_type: str) -> None:
        """Note that `site` has answered a message of this type in this round. No second one should come.

        Do not use this for a strategy that trains in stages, such as SecAgg+. Its messages have their round
        as group.
        """
        at, of, types = self._answered.get(site, (0, 0, set()))
        self._answered[site] = start, number, {message_type, *(types if (at, of) == (start, number) else ())}

    def repeats(self, site: str, number: int, message_type: str) -> bool:
        """Return whether `site` has already answered such a message of the latest start."""
        start, of, types = self._answered.get(site, (0, 0, set()))
        return (start, of) == (self.start, number) and message_type in types

    def take(self, number: int, kind: str, created: float, again: bool = False) -> tuple[int, bool]:
        """Note a message of round `number` which the ServerApp made at `created`, by its clock.

        Args:
            number: the round's.
            kind: the message's.
            created: the time it was made, in Unix time.
            again: true if its site has already answered the same (`repeats`).

        Returns the start that it belongs to, and whether it is its round's first.
        """
        if created > self._created:
            # A strategy evaluates after it has trained. A later training message is another start's first
            # round.
            again |= number == self._number and kind == TRAIN and number in self._starts[-1].evaluated
            if number < self._number or again:
                self._starts.append(_Start(self._created, created, (number, kind)))
            self._number, self._created = number, created
        at = len(self._starts) - 1
        while at and not self._starts[at].has((number, kind), created):
            at -= 1
        start = self._starts[at]
        is_first = number not in start.begun
        start.begun.add(number)
        if kind == EVALUATE:
            start.evaluated.add(number)
        return at + 1, is_first
