"""`Canaries`: which of an alias's two revisions an invocation runs on, and how both do.

The choice is made anew for each invocation, at random by the weight; what is sticky comes first, and before that what a
tester asks for (`X-Faas-Revision`). Events and schedules choose when they run: each try chooses again.
"""

from __future__ import annotations

import hmac
import random
import time
from collections.abc import Callable
from contextvars import Token
from dataclasses import dataclass
from hashlib import sha256
from types import TracebackType

from aiohttp import web

from faas.auth import Permission
from faas.errors import FunctionError, ImageUnusable, InvalidInput
from faas.metrics import Metrics
from gateway.edge.caller import Caller
from gateway.edge.canary.judge import Window, verdict
from gateway.edge.canary.rule import COOKIE, HEADER, SUB, Canary
from gateway.flight import CURRENT, Flight
from gateway.router import CANARY, STABLE, Route, Split

REVISION_HEADER = "X-Faas-Revision"
COOKIE_NAME = "faas-revision-"  # and eight digits of the alias: several functions may share a host and a path
MAC_DIGITS = 32
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Tripped:
    """A canary that is to be taken back."""

    route: Route
    canary: Canary
    reason: str


class _Watched:
    """The windows of one canary."""

    def __init__(self, route: Route, canary: Canary) -> None:
        assert canary.limits is not None
        seconds = canary.limits.window_seconds
        self.route, self.canary = route, canary
        self.windows = {STABLE: Window(seconds), CANARY: Window(seconds)}


class Canaries:
    """One for all. `key` signs cookies; `clock` gives seconds, monotonic; `draw` a number from 0.0 to below 1.0."""

    def __init__(
        self,
        metrics: Metrics,
        key: bytes = b"",
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.key = key or random.randbytes(KEY_BYTES)  # noqa: S311 - until the server's own has been read
        self._metrics = metrics
        self._clock = clock
        self._draw = draw
        self._watched: dict[str, _Watched] = {}  # by the canary's id

    def pick(self, route: Route) -> Turn:
        """The turn of an invocation that nobody's request is: by weight alone."""
        split = route.split
        if split is None:
            return Turn(self, route)
        return Turn(self, split.side(self._drawn(split.canary)))

    def choose(self, request: web.Request, route: Route, caller: Caller) -> Turn:
        """The turn of a request. Raises InvalidInput where a tester asks for neither of the two."""
        split = route.split
        if split is None:
            return Turn(self, route)
        if (asked := self._asked(request, split, caller)) is not None:
            return Turn(self, asked, judged=False)
        sticky = split.canary.sticky
        if sticky == COOKIE:
            side, cookie = self._by_cookie(request, route, split.canary)
            return Turn(self, split.side(side), cookie=cookie)
        value = _sticky_value(request, sticky, caller) if sticky else ""
        if value:
            share = int(self._mac(f"{split.canary.id}\n{value}"), 16) / 16**MAC_DIGITS
            return Turn(self, split.side(CANARY if share * 100 < split.canary.percent else STABLE))
        return Turn(self, split.side(self._drawn(split.canary)))

    def ended(self, route: Route, *, failed: bool, seconds: float | None, judged: bool) -> None:
        """An invocation on one side is over."""
        self._metrics.canary_requests.labels(route.label, route.side, "error" if failed else "success").inc()
        canary = route.of
        if not judged or canary is None or canary.limits is None:
            return
        watched = self._watched.get(canary.id)
        if watched is None or watched.canary is not canary:
            watched = self._anew(route, canary, watched)
        watched.windows[route.side].add(self._clock(), failed=failed, seconds=seconds)

    def tripped(self) -> list[Tripped]:
        """The canaries that do worse than they may; said again until they have been taken back (`forget`)."""
        now, found = self._clock(), []
        for watched in self._watched.values():
            limits = watched.canary.limits
            assert limits is not None
            stable, canary = (watched.windows[side].totals(now) for side in (STABLE, CANARY))
            if reason := verdict(limits, stable, canary):
                found.append(Tripped(watched.route, watched.canary, reason))
        return found

    def keep(self, ids: set[str]) -> None:
        """Forget the canaries that are none any more: `ids` are those that run."""
        for gone in self._watched.keys() - ids:
            del self._watched[gone]

    @property
    def watched(self) -> int:
        return len(self._watched)

    def _anew(self, route: Route, canary: Canary, before: _Watched | None) -> _Watched:
        """Another weight keeps what was seen; other limits begin anew."""
        if before is not None and before.canary.limits == canary.limits:
            before.route, before.canary = route, canary
            return before
        watched = self._watched[canary.id] = _Watched(route, canary)
        self._metrics.canary_rollbacks.labels(route.label)  # there before it grows
        return watched

    def _drawn(self, canary: Canary) -> str:
        return CANARY if self._draw() * 100 < canary.percent else STABLE

    def _asked(self, request: web.Request, split: Split, caller: Caller) -> Route | None:
        """What `X-Faas-Revision` asks for; None where it is not there, or not this caller's to ask."""
        wanted = request.headers.get(REVISION_HEADER)
        if wanted is None:
            return None
        key = split.stable.revision.key
        may = not caller.is_stranger and caller.principal.may(Permission.INVOKE, key.namespace, key.function)
        if not may and not split.canary.override:
            return None
        for route in (split.stable, split.other):
            if wanted.removeprefix("v") == str(route.revision.key.number):
                return route
        raise InvalidInput(
            f"{REVISION_HEADER} is neither of the two revisions behind {split.stable.qualifier}",
            hint=f"v{key.number} or v{split.canary.number}",
        )

    def _by_cookie(self, request: web.Request, route: Route, canary: Canary) -> tuple[str, str]:
        """The side, and the cookie to set; "" where the request has a good one."""
        name = COOKIE_NAME + sha256(f"{route.label}\n{route.qualifier}".encode()).hexdigest()[:8]
        text = request.cookies.get(name, "")
        side, _, mac = text.partition(".")
        if side in (STABLE, CANARY) and mac.isascii() and hmac.compare_digest(mac, self._signed(canary, side)):
            return side, ""
        side = self._drawn(canary)
        value = f"{side}.{self._signed(canary, side)}"
        secure = "; Secure" if request.secure else ""
        return side, f"{name}={value}; Path={_scope(request)}; HttpOnly; SameSite=Lax{secure}"

    def _signed(self, canary: Canary, side: str) -> str:
        return self._mac(f"cookie\n{canary.id}\n{side}")

    def _mac(self, text: str) -> str:
        return hmac.new(self.key, text.encode("utf-8", "surrogateescape"), sha256).hexdigest()[:MAC_DIGITS]


class Turn:
    """`with turn as route:` one invocation on the revision that was chosen; `answered` says the answer's status.

    `cookie`: the Set-Cookie that its answer gets, "" for none.

    What is refused before the function (429, 503), and callers who went away, are nobody's failures.
    """

    __slots__ = ("_canaries", "_judged", "_status", "_token", "cookie", "flight", "route")

    def __init__(self, canaries: Canaries, route: Route, *, judged: bool = True, cookie: str = "") -> None:
        self._canaries = canaries
        self._judged = judged
        self._status = 0
        self.cookie = cookie
        self.route = route
        self.flight = Flight(route)
        self._token: Token[Flight | None]

    def answered(self, status: int) -> None:
        self._status = status

    def __enter__(self) -> Route:
        self._token = CURRENT.set(self.flight)
        return self.route

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        CURRENT.reset(self._token)
        if not self.route.side:
            return
        broken = isinstance(error, FunctionError | ImageUnusable)
        if error is not None and not broken:
            return
        failed = broken or self._status >= 500
        seconds = None if failed else self.flight.seconds
        self._canaries.ended(self.route, failed=failed, seconds=seconds, judged=self._judged)


def _sticky_value(request: web.Request, sticky: str, caller: Caller) -> str:
    """What decides for this request; "" where it has none, and chance decides."""
    if sticky == SUB:
        claims = caller.context.get("jwt", {}).get("claims", {})
        return str(claims.get("sub", "")) or ("" if caller.is_stranger else caller.principal.name)
    return request.headers.get(sticky.removeprefix(HEADER), "")


def _scope(request: web.Request) -> str:
    """The cookie's path: the function's own, else everything of the host."""
    parts = request.path.split("/", 3)
    name = parts[2] if len(parts) > 2 and parts[1] == "function" else ""
    return f"/function/{name}" if name and all(c.isalnum() or c in "-_.:" for c in name) and name.isascii() else "/"
