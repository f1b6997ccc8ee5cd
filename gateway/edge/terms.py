"""What a route itself lays down of its requests: header fields, the body's size, the time.

`lay_down` comes before the steps that read the body: what they are told, and what the answer gets. `within` is around
the last one: an answer in time, or 504.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

from faas.bodies import BodyLimit
from faas.errors import PayloadTooLarge, TimedOut
from faas.web import BODY_LIMIT
from gateway.edge.entry import Entry
from gateway.headers import CHANGES
from gateway.sending import cut

OnAnswer = Callable[[web.StreamResponse], None]
Say = Callable[[web.Request, OnAnswer], None]  # gateway.edge.passage.on_answer


def lay_down(request: web.Request, entry: Entry, say: Say) -> None:
    """Raises PayloadTooLarge for a body that is announced as too large."""
    if entry.response_headers:
        say(request, lambda response: entry.response_headers.of_answer(response.headers))
    if entry.request_headers:
        request[CHANGES] = entry.request_headers
    if entry.body_limit:
        announced = request.content_length or 0
        if announced > entry.body_limit:
            raise PayloadTooLarge(f"the body has {announced} bytes; at most {entry.body_limit} are taken")
        request[BODY_LIMIT] = BodyLimit(entry.body_limit)


async def within(
    request: web.Request, entry: Entry, work: Coroutine[Any, Any, web.StreamResponse], say: Say
) -> web.StreamResponse:
    """The answer of `work`, whole within the entry's time. A WebSocket's ends with its handshake.

    Raises TimedOut before the head of an answer is out; after that the connection is cut. A Lambda-style function that
    runs goes on to its end, as on API Gateway; an http function's request ends.
    """
    if entry.timeout is None:
        return await work
    begun: list[web.StreamResponse] = []
    try:
        async with asyncio.timeout(entry.timeout) as deadline:

            def begins(response: web.StreamResponse) -> None:
                begun.append(response)
                if response.status == 101:
                    deadline.reschedule(None)

            say(request, begins)
            return await work
    except TimeoutError:
        if not deadline.expired():
            raise
        if begun:
            cut(request)
            return begun[0]
        raise TimedOut(
            f"there was no answer within {entry.timeout:g} s, the route's time limit", error_type="Route.Timedout"
        ) from None
