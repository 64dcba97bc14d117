"""The server's end of the FLARE link: answer the calls of the job's sites, and nobody else's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
from nvflare.fuel.f3.cellnet.utils import make_reply
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, STREAM_DATA_TOPIC, StreamHeaderKey

from bridge.common.loop import LoopThread
from bridge.job import channel
from bridge.relay.calls import Call, JobOver, LinkFault, Response
from bridge.server.participants import Participants

Answer = Callable[[str, Call], Awaitable[Response]]
Refuse = Callable[[str, str], None]
Admit = Callable[[str, str], str | None]
"""Is given a site and the version of its flwr. Returns the reason if the site cannot take part."""


class ServerLink:
    """The server's end. It answers the calls of the job's sites that arrive at its job cell, each on `loop`.
    For a site that is not admitted the job is over."""

    def __init__(
        self,
        cell: Cell,
        loop: LoopThread,
        participants: Participants,
        answer: Answer,
        refuse: Refuse,
        admit: Admit,
    ) -> None:
        """Serve from now on.

        Args:
            cell: the server's job cell.
            loop: the loop for all calls of the following.
            participants: the sites that may call at all.
            answer: executes a call of a site.
            refuse: called with site and reason of a message that is not a call, or not from a site of this
                job.
            admit: see `Admit`.
        """
        self._cell = cell
        self._loop = loop.loop
        self._participants = participants
        self._answer, self._refuse, self._check_compatible = answer, refuse, admit
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._turning_away: set[asyncio.Task[None]] = set()
        channel.receive(cell, channel.CALL, loop.loop, self._called)
        channel.receive(cell, channel.QUESTION, loop.loop, self._asked)
        cell.core_cell.add_incoming_filter(STREAM_CHANNEL, STREAM_DATA_TOPIC, self._filter)

    def put_out(self, site: str, why: str) -> None:
        """Answer the calls that `site` still waits for: it no longer takes part."""
        for key, task in list(self._running.items()):
            if key[0] == site:
                task.cancel(why)

    def _filter(self, frame: Message) -> Message | None:
        """Check each frame that arrives, before FLARE assembles it. A returned message drops the frame."""
        ours = frame.get_header(StreamHeaderKey.CHANNEL) == channel.CHANNEL
        if not ours and not self._participants.owns(frame.get_header(MessageHeaderKey.ORIGIN)):
            return None  # The frame is FLARE's own.
        if self._participants.why_not(frame.headers) is None:
            return None
        if ours and frame.get_header(StreamHeaderKey.SEQUENCE) == 0:
            # The first frame has all headers. The others need no answer.
            channel.call_on(self._loop, self._stranger, Message(frame.headers))
        return make_reply(ReturnCode.UNAUTHENTICATED)

    def _stranger(self, message: Message) -> None:
        task = asyncio.ensure_future(self._turn_away(message))
        self._turning_away.add(task)
        task.add_done_callback(self._turning_away.discard)

    async def _turn_away(self, message: Message) -> None:
        site = channel.site_of(message)
        await self._participants.look_again(site)
        why = self._participants.why_not(message.headers)
        if why is None:
            self._reply(message, {channel.FAULT: "this site has just come back"})
            return
        self._refuse(site, f"a message from outside the job: {why}")
        if message.get_header(StreamHeaderKey.TOPIC) == channel.CALL:
            self._reply(message, channel.refusal(why))

    def _reply(self, message: Message, headers: dict[str, Any], body: bytes = b"") -> None:
        number, origin = message.get_header(channel.TRY_ID), message.get_header(MessageHeaderKey.ORIGIN)
        channel.send(self._cell, channel.ANSWER, origin, {channel.TRY_ID: number, **headers}, body)

    def _called(self, message: Message) -> None:
        number = message.get_header(channel.TRY_ID)
        if not isinstance(number, str) or not channel.ID.fullmatch(number):
            self._refuse(channel.site_of(message), "a message without a number")
            return
        key = (channel.site_of(message), number)
        task = asyncio.ensure_future(self._carry_out(message))
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key, None))

    async def _carry_out(self, message: Message) -> None:
        try:
            headers, body = await self._outcome(message)
        except asyncio.CancelledError:
            headers, body = {}, b""
        # The site may have left meanwhile, and must not get an answer meant for a site of the job.
        if why := self._participants.why_not(message.headers):
            headers, body = channel.refusal(why), b""
        if headers:
            self._reply(message, headers, body)

    async def _outcome(self, message: Message) -> tuple[dict[str, Any], bytes]:
        site = channel.site_of(message)
        if unfit := self._check_compatible(site, str(message.get_header(channel.FLWR))):
            return {channel.UNFIT: unfit}, b""
        try:
            response = await self._answer(site, channel.read_call(message))
        except channel.BadCall as bad:
            self._refuse(site, str(bad))
            response = Response(400)
        except JobOver:
            return {channel.OVER: True}, b""
        except LinkFault as fault:
            return {channel.FAULT: str(fault) or "no reason given"}, b""
        return {
            channel.STATUS: response.status,
            channel.SITE_HEADERS: json.dumps(response.headers),
        }, response.body

    def _asked(self, message: Message) -> None:
        site = channel.site_of(message)
        try:
            asked = channel.json_list(message, channel.TRIES, channel.DONE_LIMIT)
        except channel.BadCall as bad:
            self._refuse(site, str(bad))
            return
        running = [number for number in asked if isinstance(number, str) and (site, number) in self._running]
        headers = {channel.TRY_ID: message.get_header(channel.TRY_ID), channel.TRIES: json.dumps(running)}
        channel.send(self._cell, channel.RUNNING, message.get_header(MessageHeaderKey.ORIGIN), headers)
