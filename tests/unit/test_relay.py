"""The relay's rules, with a link and a server that fail on command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from bridge.relay import call_ledger, calls
from bridge.relay.call_ledger import CallLedger
from bridge.relay.calls import Call, JobOver, LinkFault, Request, Response, Retry, Rule, SiteRelay

REQUEST = Request("/v1/fleet/x", (), b"question")


def rule(repeat: Retry, key: str = "k", releases: str | None = None) -> Rule:
    return Rule(repeat, key, releases)


class Server:
    """A server that answers with a number that grows at every execution. It raises `faults` first, in
    order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.faults: list[Exception] = []
        self.gate: asyncio.Event | None = None
        self.probes = self.unreachable = 0

    async def send(self, call: Call) -> Response:
        if self.faults:
            raise self.faults.pop(0)
        self.calls.append(call)
        if self.gate is not None:
            await self.gate.wait()
        return Response(200, (), str(len(self.calls)).encode())

    async def probe(self) -> None:
        self.probes += 1
        if self.unreachable:
            self.unreachable -= 1
            raise LinkFault("still down")


def run(test: Callable[[], object]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


@pytest.mark.parametrize("repeat", Retry)
def test_each_repetition_is_answered_as_its_rule_says(repeat: Retry) -> None:
    async def test() -> None:
        server = Server()
        caller = SiteRelay(server)
        first = await caller.call(REQUEST, rule(repeat))
        second = await caller.call(REQUEST, rule(repeat))
        assert first is not None and second is not None
        assert first.body == b"1"
        assert second.body == (b"2" if repeat is Retry.IDEMPOTENT else b"1")

    run(test)


def test_a_held_answer_is_given_again_until_it_is_released() -> None:
    async def test() -> None:
        caller = SiteRelay(Server())
        bodies = []
        for releases in (None, None, "k", None):
            key = "k" if releases is None else "confirm"
            answer = await caller.call(REQUEST, rule(Retry.UNTIL_CONFIRMED, key, releases))
            assert answer is not None
            bodies.append(answer.body)
        assert bodies == [b"1", b"1", b"2", b"3"]

    run(test)


SHOWS = Rule(Retry.IDEMPOTENT, "object", shows=("k", b"1"))
"""Make a call that only an asker makes who has read the first answer, which is "1"."""


def test_an_answer_that_is_never_confirmed_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        caller = SiteRelay(Server())
        bodies = []
        for _ in range(calls.MAX_REPLAYS + 3):
            answer = await caller.call(REQUEST, rule(Retry.UNTIL_CONFIRMED))
            assert answer is not None
            bodies.append(answer.body)
            await caller.call(REQUEST, SHOWS)
        assert bodies[:-2] == [b"1"] * (calls.MAX_REPLAYS + 1)
        assert b"1" not in bodies[-2:]

    run(test)
    (line,) = (record.getMessage() for record in caplog.records if "never confirmed" in record.getMessage())
    assert line.startswith("/v1/fleet/x: the answer arrived 4 times")


@pytest.mark.parametrize(
    "between",
    [None, Rule(Retry.IDEMPOTENT, "object", shows=("k", b"another")), Rule(Retry.IDEMPOTENT, "heartbeat")],
)
def test_a_held_answer_that_is_lost_again_and_again_is_kept(between: Rule | None) -> None:
    """Nothing shows that it arrived, so every try gets it: also behind the loss of a hundred answers, and
    beside calls that are about another one."""

    async def test() -> None:
        caller = SiteRelay(Server())
        for _ in range(100):
            answer = await caller.call(REQUEST, rule(Retry.UNTIL_CONFIRMED))
            assert answer is not None and answer.body == b"1"
            if between is not None:
                await caller.call(REQUEST, between)

    run(test)


def test_tries_behind_one_sign_of_arrival_count_once() -> None:
    async def test() -> None:
        caller = SiteRelay(Server())
        for number in range(100):
            answer = await caller.call(REQUEST, rule(Retry.UNTIL_CONFIRMED))
            assert answer is not None and answer.body == b"1"
            if number % 50 == 0:
                await caller.call(REQUEST, SHOWS)

    run(test)


def test_an_empty_answer_is_not_held() -> None:
    class Nothing(Server):
        async def send(self, call: Call) -> Response:
            self.calls.append(call)
            return Response(200)

    async def test() -> None:
        server = Nothing()
        caller = SiteRelay(server)
        await caller.call(REQUEST, rule(Retry.UNTIL_CONFIRMED))
        await caller.call(REQUEST, rule(Retry.UNTIL_CONFIRMED))
        assert len(server.calls) == 2

    run(test)


def test_a_refusal_is_not_kept() -> None:
    class Refusing(Server):
        async def send(self, call: Call) -> Response:
            self.calls.append(call)
            return Response(503 if len(self.calls) == 1 else 200, (), b"ok")

    async def test() -> None:
        caller = SiteRelay(Refusing())
        first = await caller.call(REQUEST, rule(Retry.AT_MOST_ONCE))
        second = await caller.call(REQUEST, rule(Retry.AT_MOST_ONCE))
        assert first is not None and second is not None
        assert (first.status, second.status) == (503, 200)

    run(test)


def test_a_failing_link_is_tried_again_with_the_same_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.relay.calls.BACKOFF_MIN", 0.001)

    async def test() -> None:
        server = Server()
        server.faults = [LinkFault("down"), LinkFault("down")]
        answer = await SiteRelay(server).call(REQUEST, rule(Retry.AT_MOST_ONCE))
        assert answer is not None and answer.body == b"1"

    run(test)


def test_over_a_link_that_is_down_only_one_small_question_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.relay.calls.BACKOFF_MIN", 0.001)
    monkeypatch.setattr("bridge.relay.calls.PROBE_INTERVAL", 0.01)

    async def test() -> None:
        server = Server()
        server.faults = [LinkFault("down") for _ in range(8)]
        server.unreachable = 5
        caller = SiteRelay(server)
        calls = [caller.call(REQUEST, rule(Retry.IDEMPOTENT, str(number))) for number in range(8)]
        answers = await asyncio.gather(*calls)
        assert all(answer is not None for answer in answers)
        assert len(server.calls) == 8
        assert server.probes == 6

    run(test)


def test_a_repetition_brings_a_younger_signature() -> None:
    async def test() -> None:
        server = Server()
        server.faults = [LinkFault("down")]
        caller = SiteRelay(server, answer_within=0.01)
        old, young = (Request(REQUEST.path, (("flwr-timestamp", age),), b"q") for age in ("old", "young"))
        assert await caller.call(old, rule(Retry.IDEMPOTENT)) is None
        caller.answer_within = 5
        assert await caller.call(young, rule(Retry.IDEMPOTENT)) is not None
        assert [call.request for call in server.calls] == [young]

    run(test)


def test_a_repetition_joins_the_call_in_flight() -> None:
    async def test() -> None:
        server = Server()
        server.gate = asyncio.Event()
        caller = SiteRelay(server, answer_within=0.02)
        assert await caller.call(REQUEST, rule(Retry.IDEMPOTENT)) is None
        again = asyncio.ensure_future(caller.call(REQUEST, rule(Retry.IDEMPOTENT)))
        await asyncio.sleep(0)
        server.gate.set()
        answer = await again
        assert answer is not None and answer.body == b"1"
        assert len(server.calls) == 1

    run(test)


def test_an_answer_that_came_too_late_is_kept_for_the_repetition() -> None:
    async def test() -> None:
        server = Server()
        server.gate = asyncio.Event()
        caller = SiteRelay(server, answer_within=0.01)
        assert await caller.call(REQUEST, rule(Retry.IDEMPOTENT)) is None
        server.gate.set()
        await asyncio.sleep(0.01)
        assert caller.bytes_kept == 1
        answer = await caller.call(REQUEST, rule(Retry.IDEMPOTENT))
        assert answer is not None and answer.body == b"1"
        assert caller.bytes_kept == 0

    run(test)


def test_the_end_of_the_job_is_announced_once_and_ends_every_call() -> None:
    async def test() -> None:
        told: list[str] = []
        server = Server()
        server.faults = [JobOver(), JobOver()]
        caller = SiteRelay(server, on_over=lambda: told.append("over"))
        for _ in range(3):
            with pytest.raises(JobOver):
                await caller.call(REQUEST, rule(Retry.IDEMPOTENT))
        assert told == ["over"]

    run(test)


def test_the_server_is_told_which_answers_arrived() -> None:
    async def test() -> None:
        server = Server()
        caller = SiteRelay(server)
        await caller.call(REQUEST, rule(Retry.IDEMPOTENT))
        await caller.call(REQUEST, rule(Retry.IDEMPOTENT))
        assert server.calls[1].done == (server.calls[0].id,)

    run(test)


def test_the_ledger_executes_a_call_once_and_forgets_finished_calls() -> None:
    async def test() -> None:
        ledger = CallLedger()
        executed: list[str] = []

        def work(name: str) -> Callable[[], object]:
            async def go() -> Response:
                executed.append(name)
                await asyncio.sleep(0.01)
                return Response(200, (), name.encode())

            return go

        answers = await asyncio.gather(
            ledger.answer("site-1", "a", (), work("a")),  # type: ignore[arg-type]
            ledger.answer("site-2", "a", (), work("other site")),  # type: ignore[arg-type]
        )
        assert [a.body for a in answers] == [b"a", b"other site"]
        assert (await ledger.answer("site-1", "a", (), work("again"))).body == b"a"  # type: ignore[arg-type]
        assert executed == ["a", "other site"]
        assert ledger.bytes_kept == 1 + len("other site")
        await ledger.answer("site-1", "b", ("a",), work("b"))  # type: ignore[arg-type]
        assert ledger.bytes_kept == 1 + len("other site")

    run(test)


def test_the_ledger_keeps_nothing_of_an_execution_that_failed() -> None:
    async def test() -> None:
        ledger = CallLedger()

        async def fails() -> Response:
            raise LinkFault("no SuperLink")

        async def works() -> Response:
            return Response(200)

        with pytest.raises(LinkFault):
            await ledger.answer("s", "a", (), fails)
        assert (await ledger.answer("s", "a", (), works)).status == 200

    run(test)


def test_a_new_asker_gets_nothing_that_was_for_the_old_one() -> None:
    async def test() -> None:
        server = Server()
        caller = SiteRelay(server)
        await caller.call(REQUEST, rule(Retry.AT_MOST_ONCE))
        await caller.call(REQUEST, rule(Retry.UNTIL_CONFIRMED, "held"))
        await caller.start_over()
        assert caller.bytes_kept == 0
        answer = await caller.call(REQUEST, rule(Retry.AT_MOST_ONCE))
        assert answer is not None and answer.body == b"3"
        assert [call.incarnation for call in server.calls] == [1, 1, 2]

    run(test)


def test_a_ledger_runs_and_keeps_a_bounded_number_of_calls_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_ledger, "MAX_UNCONFIRMED_BYTES", 100)

    async def test() -> None:
        ledger = CallLedger(running_at_once=3)
        gate = asyncio.Event()

        async def slow() -> Response:
            await gate.wait()
            return Response(200, (), b"x" * 40)

        async def quick() -> Response:
            return Response(200)

        running = [asyncio.ensure_future(ledger.answer("site-1", str(n), (), slow)) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(LinkFault, match="3 calls of site-1"):
            await ledger.answer("site-1", "3", (), slow)
        assert (await ledger.answer("site-2", "3", (), quick)).status == 200
        gate.set()
        await asyncio.gather(*running)
        assert ledger.bytes_kept == 80

    run(test)


def test_a_ledger_keeps_no_answer_that_can_be_had_again() -> None:
    async def test() -> None:
        ledger = CallLedger()
        executions = 0

        async def work() -> Response:
            nonlocal executions
            executions += 1
            return Response(200, (), b"object")

        for _ in range(2):
            assert (await ledger.answer("site-1", "a", (), work, keep=False)).body == b"object"
        assert executions == 2
        assert ledger.bytes_kept == 0

    run(test)


def test_a_later_try_takes_the_place_of_an_earlier_one() -> None:
    async def test() -> None:
        ledger = CallLedger()
        gate = asyncio.Event()
        executions = 0

        async def slow() -> Response:
            nonlocal executions
            executions += 1
            await gate.wait()
            return Response(200, (), b"answer")

        tries = []
        for _ in range(3):
            tries.append(asyncio.ensure_future(ledger.answer("site-1", "a", (), slow)))
            await asyncio.sleep(0.01)
        assert [isinstance(t.exception(), LinkFault) for t in tries[:2]] == [True, True]
        gate.set()
        assert (await tries[2]).body == b"answer"
        assert executions == 1

    run(test)
