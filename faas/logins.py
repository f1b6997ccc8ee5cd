"""`Logins`: what is open by somebody's credentials (a log that is followed, a WebSocket), and ends with their rights.

A request is checked once, when it comes. What stays open for hours is looked at again whenever a token or a user
changes, and when a token expires.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from aiohttp import web

from faas.auth import ANONYMOUS, Permission, Principal
from faas.errors import Forbidden
from faas.web import PRINCIPAL

LONGEST_SECONDS = 86_400.0  # a timer that is set for longer is set again
OVER = "this login is over, or may not do any more what it has opened"


class Ended(Forbidden):
    """What was open is not allowed any more."""


@dataclass(slots=True, eq=False)
class _Watch:
    allowed: Callable[[Principal], bool]
    end: Callable[[], object]


class Logins:
    """One for a server. `find` tells the rights of the credentials of that name as they are now, and when they expire
    (Unix seconds)."""

    def __init__(self, find: Callable[[str], tuple[Principal, float | None] | None]) -> None:
        self._find = find
        self._open: dict[str, set[_Watch]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}  # for the end of what expires

    @contextmanager
    def watch(self, credential: str, allowed: Callable[[Principal], bool], end: Callable[[], object]) -> Iterator[None]:
        """`end` is called, once, when what logs in by the name `credential` is not `allowed` any more."""
        watch = _Watch(allowed, end)
        self._open.setdefault(credential, set()).add(watch)
        try:
            self.changed(credential)  # it may have been revoked on the way here
            yield
        finally:
            self._forget(credential, watch)

    def changed(self, *credentials: str) -> None:
        """Look after everything that was opened by these names; by all, where none is named."""
        for credential in credentials or tuple(self._open):
            watches = self._open.get(credential)
            if not watches:
                continue
            found = self._find(credential)
            self._set_timer(credential, found[1] if found is not None else None)
            for watch in tuple(watches):
                if found is None or not watch.allowed(found[0]):
                    self._forget(credential, watch)
                    watch.end()

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def _forget(self, credential: str, watch: _Watch) -> None:
        watches = self._open.get(credential, set())
        watches.discard(watch)
        if not watches and self._open.pop(credential, None) is not None:
            self._set_timer(credential, None)

    def _set_timer(self, credential: str, expires_at: float | None) -> None:
        if (timer := self._timers.pop(credential, None)) is not None:
            timer.cancel()
        if expires_at is not None:
            wait = min(max(0.0, expires_at - time.time()) + 0.01, LONGEST_SECONDS)
            self._timers[credential] = asyncio.get_running_loop().call_later(wait, self.changed, credential)


LOGINS = web.AppKey("logins", Logins)


@contextmanager
def watching(
    request: web.Request,
    permission: Permission,
    namespace: str | None,
    function: str | None,
    end: Callable[[], object],
) -> Iterator[None]:
    """`end` is called when who has sent `request` does not hold `permission` there (None: anywhere) any more.

    Whoever has come in without a token of the server (a public function, an API key) is not watched.
    """
    logins, principal = request.app.get(LOGINS), request.get(PRINCIPAL)
    if logins is None or principal is None or principal is ANONYMOUS:
        yield
        return
    with logins.watch(principal.credential, lambda now: now.may(permission, namespace, function), end):
        yield


@asynccontextmanager
async def while_allowed(
    request: web.Request, permission: Permission, namespace: str | None, function: str | None = None
) -> AsyncIterator[None]:
    """As `watching`; the block is cancelled then, and Ended raised in its place."""
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True
        deadline.reschedule(asyncio.get_running_loop().time())

    try:
        async with asyncio.timeout(None) as deadline:
            with watching(request, permission, namespace, function, end):
                yield
    except TimeoutError:
        if not ended:
            raise
        raise Ended(OVER) from None
