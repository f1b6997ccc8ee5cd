"""Lambda authorizers: a function of the same namespace says who comes in, and what the function that is called hears.

It is invoked as every function is (and counts as one invocation), with its own time limit. Its answer is kept for the
same credentials at the same place; a policy is kept and looked at for each request. Whatever goes wrong lets nobody in:
500, with its reason in the log alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from aiohttp import web

from faas.auth import Principal, Role
from faas.errors import FaasError, Forbidden, ShuttingDown, Throttled
from faas.leases import InvocationResult, Trigger
from faas.path_pattern import segments_of
from faas.rules.auth import AuthorizerRule, AuthRule
from faas.turns import Turns
from faas.web import REQUEST_ID, new_request_id
from gateway import event
from gateway.edge.auth import policy
from gateway.edge.auth.identity import arns_of, event_of, others_of, values_of
from gateway.edge.auth.method import BEARER, WrongCredentials
from gateway.edge.auth.policy import BadAnswer, Verdict
from gateway.edge.caller import Caller
from gateway.edge.entry import Entry
from gateway.invoke import Invoker
from gateway.router import Route, Router

log = logging.getLogger("faas.authorizer")

KEPT = 10_000  # answers; the longest unused is forgotten first
KEPT_BYTES = 16_777_216  # of what functions answered
PATH_CHARACTERS = 2048  # that a policy is asked about: patterns are a function's, and comparing takes its time


class AuthorizerFailed(FaasError):
    """The authorizer could not say who may call."""

    code = "AuthorizerFailed"


class Verdicts:
    """Answers until their time is over. `clock` never jumps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[Hashable, tuple[float, int, Verdict]] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable) -> Verdict | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if self._clock() >= found[0]:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[2]

    def keep(self, key: Hashable, verdict: Verdict, size: int, seconds: float) -> None:
        self._drop(key)
        self._kept[key] = (self._clock() + seconds, size, verdict)
        self._bytes += size
        while len(self._kept) > KEPT or self._bytes > KEPT_BYTES:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Hashable) -> None:
        if (found := self._kept.pop(key, None)) is not None:
            self._bytes -= found[1]


class AuthorizerMethod:
    def __init__(self, router: Router, invoker: Invoker, verdicts: Verdicts | None = None) -> None:
        self._router = router
        self._invoker = invoker
        self._verdicts = verdicts or Verdicts()
        self._turns: Turns[Hashable] = Turns()

    async def admit(self, request: web.Request, entry: Entry, asked: AuthRule) -> Caller | None:
        """Raises AuthorizerFailed; Throttled where the authorizer has no capacity."""
        rule = asked.authorizer
        if rule is None or (values := values_of(request, entry, rule.identity)) is None:
            return None
        if asked.key is not None:
            entry = Caller(withheld=asked.key.query).seen(entry)
        verdict = await self._verdict(request, entry, rule, values)
        if verdict.simple is None and not _is_plain(entry.target.path):
            raise Forbidden("no policy allows a path that is so long, or could be read in two ways")
        if not verdict.allows(arns_of(request, entry), others_of(request, entry)):
            raise Forbidden("this is not allowed")
        where = entry.route.revision.key
        name = verdict.name or rule.function
        principal = Principal(name, Role.CALLER, where.namespace, (where.function,))
        return Caller(principal, {"lambda": verdict.context})

    def challenge(self, asked: AuthRule, *, wrong: bool) -> str:
        return BEARER if asked.authorizer else ""

    async def _verdict(
        self, request: web.Request, entry: Entry, rule: AuthorizerRule, values: tuple[str, ...]
    ) -> Verdict:
        route = self._authorizer(entry, rule)
        seconds = rule.ttl.total_seconds()
        if not seconds:
            return (await self._ask(request, entry, rule, route, values))[0]
        # The place is part of it: what was said of one is never believed of another.
        place = (entry.route.label, entry.api, entry.stage, entry.pattern)
        key = (route.revision.key, rule.format, place, rule.identity, _digest(values))
        if (found := self._verdicts.get(key)) is not None:
            return found
        async with self._turns.of(key):  # many at once ask once
            if (found := self._verdicts.get(key)) is not None:
                return found
            verdict, size = await self._ask(request, entry, rule, route, values)
            self._verdicts.keep(key, verdict, size, seconds)
            return verdict

    def _authorizer(self, entry: Entry, rule: AuthorizerRule) -> Route:
        name, _, qualifier = rule.function.partition(":")
        try:
            return self._router.resolve(entry.route.revision.key.namespace, name, qualifier)
        except FaasError as error:
            log.error("the authorizer %s of %s: %s", rule.function, entry.route.label, error.message)
            raise AuthorizerFailed from None

    async def _ask(
        self, request: web.Request, entry: Entry, rule: AuthorizerRule, route: Route, values: tuple[str, ...]
    ) -> tuple[Verdict, int]:
        """(verdict, bytes of it). Raises WrongCredentials where the function says "Unauthorized"."""
        encoded = event.encode(event_of(request, entry, rule, values))
        own_id = new_request_id()
        try:
            async with asyncio.timeout(rule.timeout):
                result = await self._invoker.invoke_event(route, encoded, trigger=Trigger.HTTP, request_id=own_id)
            if result.error_type is not None:
                raise _unauthorized(result) or BadAnswer(f"it failed with {result.error_type[:128]}")
            return policy.read(result.payload, rule.format), len(result.payload)
        except (Throttled, ShuttingDown, WrongCredentials):
            raise
        except TimeoutError:
            reason = f"it took more than {rule.timeout} s"
        except FaasError as error:
            reason = error.message
        except BadAnswer as error:
            reason = str(error)
        log.error(
            "the authorizer %s of %s: %s (its own request is %s)",
            rule.function, entry.route.label, reason, own_id, extra={"request_id": request[REQUEST_ID]},
        )  # fmt: skip
        raise AuthorizerFailed


def _is_plain(path: str) -> bool:
    """Whether routes would take it too: no `..`, `//`, encoded slash; and it is not too long to be compared."""
    if len(path) > PATH_CHARACTERS:
        return False
    try:
        segments_of(path)
    except ValueError:
        return False
    return True


def _digest(values: tuple[str, ...]) -> bytes:
    """Credentials are not kept in memory longer than their request."""
    return hashlib.sha256(json.dumps(values).encode()).digest()


def _unauthorized(result: InvocationResult) -> WrongCredentials | None:
    """A function refuses credentials, where API Gateway has it say so, by failing with just this word."""
    try:
        said = json.loads(result.payload)["errorMessage"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return WrongCredentials() if said == "Unauthorized" else None
