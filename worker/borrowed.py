"""`Borrower`: the worker of a lane process: slots of instances that the main process has lent to it (`worker.lending`).

It starts nothing and ends nothing. What happens in the slots is put aside, and told to the main process in batches.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, NoReturn, Protocol, cast

from faas.background import Background
from faas.errors import BadFunctionResponse, FaasError, InstanceExited, OutOfMemory, TimedOut, Unavailable
from faas.leases import Answering, InvocationResult, KnownHead, Report, StreamedResult
from faas.protocol import Revision, RevisionKey
from worker.deadlines import Deadlines
from worker.drivers.base import Sandbox
from worker.http import HttpClient
from worker.http_connection import BrokenConnection
from worker.sending import Sending

_KINDS = {kind.__name__: kind for kind in (InstanceExited, OutOfMemory, BadFunctionResponse, TimedOut)}


class Main(Protocol):
    """The main process, as slots need it."""

    async def connect(self, loan: int) -> socket.socket:
        """A socket connected to the loan's instance. Raises OSError."""
        ...

    async def why(self, loan: int, request_id: str, seconds: float, broken: BrokenConnection) -> BaseException:
        """What a caller is told whose connection broke; it is accounted for there."""
        ...

    async def late(self, loan: int, request_id: str, seconds: float) -> None:
        """It has taken too long. Returns when nobody uses that instance any more."""
        ...

    def tell_soon(self) -> None:
        """There is something to tell."""
        ...

    def tell_now(self) -> None: ...


class Borrowed:
    """One loan: `slots` of an instance, of which `taken` are in use. As the sandbox of its `HttpClient` it asks the
    main process for connections."""

    def __init__(self, main: Main, loan: int, slots: int, deadlines: Deadlines) -> None:
        self.main = main
        self.loan = loan
        self.slots = slots
        self.taken = 0
        self.deadlines = deadlines
        self.client = HttpClient(cast("Sandbox", self), 0, slots)
        self.background = Background()
        self.is_recalled = False
        self.used = True  # since the last look
        self.begun: list[tuple[str, float]] = []  # not told yet
        self.ended: list[tuple[str, float]] = []
        self.back = 0

    async def connect(self, port: int) -> socket.socket:
        return await self.main.connect(self.loan)

    def release(self) -> None:
        self.taken -= 1
        if self.is_recalled:
            self._give_back(1)
        self.main.tell_soon()

    def recall(self) -> None:
        """No use from here on; slots in use go back as they are free."""
        if not self.is_recalled:
            self.is_recalled = True
            self._give_back(self.slots - self.taken)

    def _give_back(self, slots: int) -> None:
        self.slots -= slots
        self.back += slots
        if not self.slots:
            self.client.close()
        self.main.tell_now()

    def told(self) -> list[Any] | None:
        """All that has not been told yet."""
        if not self.begun and not self.ended and not self.back:
            return None
        told = [self.loan, self.begun, self.ended, self.back]
        self.begun, self.ended, self.back = [], [], 0
        return told


class Borrower:
    """The part of `faas.protocol.Worker` that has doors."""

    def __init__(self, main: Main) -> None:
        self._main = main
        self._loans: dict[int, Borrowed] = {}
        self._by_key: dict[RevisionKey, list[Borrowed]] = {}
        self._deadlines: dict[RevisionKey, Deadlines] = {}

    @property
    def taken(self) -> int:
        return sum(borrowed.taken for borrowed in self._loans.values())

    def take(self, loan: int, revision: Revision, slots: int) -> None:
        """So many slots are ours."""
        deadlines = self._deadlines.setdefault(revision.key, Deadlines(revision.spec.timeout))
        borrowed = self._loans[loan] = Borrowed(self._main, loan, slots, deadlines)
        self._by_key.setdefault(revision.key, []).append(borrowed)

    def has_room(self, key: RevisionKey) -> bool:
        return any(one.taken < one.slots and not one.is_recalled for one in self._by_key.get(key, ()))

    def _claim(self, revision: Revision, request_id: str) -> BorrowedClaim | None:
        for borrowed in self._by_key.get(revision.key, ()):
            if borrowed.taken < borrowed.slots and not borrowed.is_recalled:
                borrowed.taken += 1
                borrowed.used = True
                return BorrowedClaim(borrowed, request_id)
        return None

    def door(self, revision: Revision) -> Callable[[str], BorrowedClaim | None]:
        return partial(self._claim, revision)

    def acquire(self, *_: object) -> NoReturn:
        raise Unavailable("this process has no instance of the function; try again")

    def recall(self, loan: int) -> None:
        if (borrowed := self._loans.get(loan)) is not None:
            borrowed.recall()

    def rest(self) -> None:
        """Loans that were not used since the last time go back."""
        for borrowed in list(self._loans.values()):  # telling takes those out that are given back
            if not borrowed.taken and not borrowed.used:
                borrowed.recall()
            borrowed.used = bool(borrowed.taken)

    def told(self) -> list[list[Any]]:
        """What happened since the last time: [loan, begun, ended, slots that go back]."""
        found = [told for borrowed in self._loans.values() if (told := borrowed.told()) is not None]
        for borrowed in [one for one in self._loans.values() if not one.slots]:
            del self._loans[borrowed.loan]
            for key, others in list(self._by_key.items()):
                if borrowed in others:
                    others.remove(borrowed)
                    if not others:
                        del self._by_key[key]
                        self._deadlines.pop(key).close()
        return found


class BorrowedClaim(Sending):
    """Implements `faas.leases.Claim`; as `worker.claim.PoolClaim` of an instance with several slots. Of what is ending
    the main process hears at once, and accounts for it."""

    report: Report | None = None
    _is_sent = False
    _began = 0.0

    def __init__(self, borrowed: Borrowed, request_id: str) -> None:
        self._borrowed = borrowed
        self._client = borrowed.client
        self._request_id = request_id

    def send(self, method: str, request: bytes, answering: Answering) -> None:
        borrowed = self._borrowed
        self._method, self._request, self._answering = method, request, answering
        self._began = now = monotonic()
        self._is_sent = True
        borrowed.begun.append((self._request_id, now))
        if (kept := borrowed.client.kept()) is not None:
            self._connection = kept
            kept.send(method, request, self)
        else:
            borrowed.client.open(self._opened)
        borrowed.deadlines.begin(self, now)

    def invoke(
        self,
        event: bytes,
        ended: Callable[[InvocationResult | None, BaseException | None], None],
        streams: Callable[[StreamedResult], None] | None = None,
        trace_id: str = "",
    ) -> None:
        raise FaasError("functions of the Runtime API have no instances here")

    def abandon(self) -> None:
        self._answering = None
        if self._is_ending:
            return  # its slot goes back when the main process has said why it broke
        if self._is_sent:
            self._over(None)
        elif not self._is_over:
            self._is_over = True
            self._borrowed.release()

    def whole(self, head: KnownHead, body: bytes) -> None:
        if self._is_over:
            return
        seconds = monotonic() - self._began
        try:
            answering, self._answering = self._answering, None
            if answering is not None:
                answering.whole(head, body, seconds)
        finally:
            self._finish(seconds, keeps=True)

    def _explain(self, broken: BrokenConnection) -> None:
        self._is_ending = True
        self._borrowed.deadlines.discard(self)
        self._borrowed.background.start(self._explained(broken), "the end of a broken request")

    async def _explained(self, broken: BrokenConnection) -> None:
        borrowed, told = self._borrowed, cast("BaseException", broken)
        borrowed.main.tell_now()  # that it has begun
        try:
            told = await borrowed.main.why(borrowed.loan, self._request_id, monotonic() - self._began, broken)
        except (FaasError, OSError):
            told = BadFunctionResponse(f"the function {broken.reason}")
        finally:
            self._over(told)

    def over_time(self, error: TimedOut) -> None:
        self._is_ending = True
        self._drop()
        self._borrowed.background.start(self._late(error), "the end of a late request")

    async def _late(self, error: TimedOut) -> None:
        borrowed = self._borrowed
        borrowed.recall()  # and with it tells that this one has begun
        borrowed.main.tell_now()
        try:
            await borrowed.main.late(borrowed.loan, self._request_id, monotonic() - self._began)
        finally:
            self._over(error)

    def _over(self, error: BaseException | None) -> None:
        if self._is_over:
            return
        connection = self._connection
        keeps = error is None and connection is not None and connection.is_reusable
        self._finish(monotonic() - self._began, keeps=keeps)
        answering, self._answering = self._answering, None
        if answering is not None:
            answering.end(error)

    def _finish(self, seconds: float, *, keeps: bool) -> None:
        self._is_over = True
        borrowed, connection = self._borrowed, self._connection
        borrowed.deadlines.discard(self)
        if connection is not None:
            if keeps and borrowed.slots:
                borrowed.client.keep(connection)
            else:
                borrowed.client.drop(connection)
        if not self._is_ending:  # else the main process has ended it
            borrowed.ended.append((self._request_id, seconds))
        borrowed.release()


def error_told(error: BaseException) -> dict[str, str]:
    """What `error_of` takes back."""
    hint = error.hint if isinstance(error, FaasError) else ""
    return {"kind": type(error).__name__, "message": str(error), "hint": hint}


def error_of(told: Any) -> BaseException:
    kind = _KINDS.get(str(told.get("kind")), BadFunctionResponse)
    return kind(str(told.get("message")), hint=str(told.get("hint") or ""))
