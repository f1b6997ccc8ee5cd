"""`Peer`: calls over a channel, in both directions at once, and events that nobody answers.

{"verb": "create", "n": 7, …}          a call; descriptors may come with it
{"n": 7, "value": …}                   its answer; descriptors may come with it
{"n": 7, "error": {"code": …, …}}      or its failure, as one of `faas.errors` or an OSError
{"event": "exited", …}                 an event
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from faas.background import Background
from faas.errors import Conflict, FaasError, ImageUnusable, InvalidInput, NotFound, StorageFull, Unavailable
from worker.launcher.wire import Channel, Garbage, Message, Received, close_all

log = logging.getLogger("worker.launcher")

CALLS_AT_ONCE = 1024  # of the other end's, under way
TEXT_CHARACTERS = 4096  # of an error's message
_KINDS = (FaasError, InvalidInput, ImageUnusable, NotFound, Conflict, Unavailable, StorageFull)
_ERRORS: Mapping[str, type[FaasError]] = {kind.__name__: kind for kind in _KINDS}


@dataclass(frozen=True, slots=True)
class Answer:
    """The descriptors are the channel's as soon as it is given."""

    value: Any = None
    descriptors: Sequence[int] = field(default=())


# The descriptors are the handler's to close. What need not wait is answered at once: no task, no turn of the loop.
Handler = Callable[[Message, list[int]], Answer | Awaitable[Answer]]


class Peer:
    """`verbs` answer the other end's calls, `on_event` hears its events, `on_end` its end."""

    def __init__(
        self,
        end: socket.socket,
        verbs: Mapping[str, Handler],
        on_end: Callable[[str], None],
        on_event: Callable[[Message], None] | None = None,
    ) -> None:
        self._verbs = verbs
        self._on_event = on_event
        self._on_end = on_end
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[Any, list[int]]]] = {}
        self._work = Background()
        self._channel = Channel(end, self._hear, self._ended)

    @property
    def is_open(self) -> bool:
        return self._channel.is_open

    async def close(self) -> None:
        self._channel.close()
        self._fail_all()
        await self._work.cancel()

    # Ours

    async def call(self, verb: str, descriptors: Sequence[int] = (), **arguments: Any) -> tuple[Any, list[int]]:
        """The value, and the descriptors that came with it: they are the caller's. Raises what the other end raised,
        Unavailable where that is gone."""
        answer = self.begin(verb, descriptors, **arguments)
        try:
            return await answer  # of who is cancelled the answer comes, and is closed
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                close_all(answer.result()[1])  # it came in the same moment
            raise

    def begin(
        self, verb: str, descriptors: Sequence[int] = (), **arguments: Any
    ) -> asyncio.Future[tuple[Any, list[int]]]:
        """As `call`; it is on its way at once, and what is asked afterwards is heard afterwards."""
        if not self.is_open:
            close_all(descriptors)
            raise _gone()
        number = next(self._numbers)
        answer: asyncio.Future[tuple[Any, list[int]]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._channel.send({"verb": verb, "n": number, **arguments}, descriptors)
        return answer

    async def ask(self, verb: str, **arguments: Any) -> Any:
        """A call whose answer has no descriptors."""
        value, descriptors = await self.call(verb, **arguments)
        close_all(descriptors)
        return value

    def post(self, verb: str, **arguments: Any) -> None:
        """A call whose answer nobody needs; it is sent at once, before what is asked afterwards."""
        if self.is_open:
            self.begin(verb, **arguments).add_done_callback(_ignored)

    def tell(self, event: str, **arguments: Any) -> None:
        self._channel.send({"event": event, **arguments})

    def _answered(self, number: int, received: Received) -> None:
        answer = self._waiting.pop(number, None)
        if answer is None:
            raise Garbage("an answer to nothing")
        if answer.done():  # whoever asked has gone
            return
        message = received.message
        if "error" in message:
            answer.set_exception(_error(message["error"]))
        else:
            answer.set_result((message.get("value"), received.take()))

    def _fail_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(_gone())

    def _ended(self, why: str) -> None:
        self._fail_all()
        self._on_end(why)

    # Theirs

    def _hear(self, received: Received) -> None:
        message = received.message
        number = message.get("n")
        if "event" in message:
            if self._on_event is not None:
                self._on_event(message)
        elif type(number) is not int:
            raise Garbage("a call without a number")
        elif "verb" not in message:
            self._answered(number, received)
        else:
            self._called(number, received)

    def _called(self, number: int, received: Received) -> None:
        verb = received.message["verb"]
        handler = self._verbs.get(verb) if isinstance(verb, str) else None
        if handler is None:
            self._fail(number, InvalidInput("there is no such verb"))
        elif len(self._work) >= CALLS_AT_ONCE:
            self._fail(number, Unavailable("too much at once"))
        else:
            try:
                answer = handler(received.message, received.take())
            except Exception as error:
                self._fail(number, error)
                return
            if isinstance(answer, Answer):
                self._give(number, answer)
            else:
                self._work.start(self._answer(number, answer), f"the verb {verb}")

    async def _answer(self, number: int, answer: Awaitable[Answer]) -> None:
        try:
            given = await answer
        except Exception as error:
            self._fail(number, error)
        else:
            self._give(number, given)

    def _give(self, number: int, answer: Answer) -> None:
        self._channel.send({"n": number, "value": answer.value}, answer.descriptors)

    def _fail(self, number: int, error: Exception) -> None:
        if not isinstance(error, FaasError | OSError):
            log.error("a call failed", exc_info=error)
            error = FaasError("a call failed; the log says why")
        self._channel.send({"n": number, "error": _told(error)})


def _ignored(answer: asyncio.Future[tuple[Any, list[int]]]) -> None:
    if not answer.cancelled() and (error := answer.exception()) is not None:
        log.debug("a call failed: %s", error)


def _told(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError):
        return {
            "code": "OSError",
            "errno": error.errno or 0,
            "message": (error.strerror or str(error))[:TEXT_CHARACTERS],
        }
    kind = next(kind for kind in type(error).__mro__ if kind.__name__ in _ERRORS)
    message, hint = (error.message, error.hint) if isinstance(error, FaasError) else (str(error), "")
    return {"code": kind.__name__, "message": message[:TEXT_CHARACTERS], "hint": hint[:TEXT_CHARACTERS]}


def _error(told: Any) -> Exception:
    """Whatever the other end wrote there."""
    if not isinstance(told, dict):
        return FaasError("a call failed")
    message = str(told.get("message") or "")[:TEXT_CHARACTERS]
    number = told.get("errno")
    if told.get("code") == "OSError" and isinstance(number, int):
        return OSError(number, message) if number else OSError(message)
    kind = _ERRORS.get(str(told.get("code")), FaasError)
    return kind(message, hint=str(told.get("hint") or "")[:TEXT_CHARACTERS])


def _gone() -> Unavailable:
    return Unavailable("the launcher is gone")
