"""`Passage`: the one way of a request through the edge, from its entry to its answer. Each step is a collaborator's.

    cors        which pages may call: a preflight is answered here
    terms       what the route lays down          413, and 504 around the call
    guards      what is not served now        503
    doorman     who may call                  401, 403
    guards      throttles, quotas, circuits   429, 503
    canaries    which of two revisions
    call        the function

What a step adds to the answer's head, it says to `on_answer`: that runs before the first byte goes out, whether the
function, an error or we ourselves answer.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from aiohttp import web

from faas.errors import NotFound, ShuttingDown
from gateway.edge import cors, terms
from gateway.edge.call import call
from gateway.edge.caller import CALLER
from gateway.edge.canary.canaries import Canaries
from gateway.edge.doorman import Caller, Doorman
from gateway.edge.entry import ENTRY, Entry, Target, of_function
from gateway.edge.guards import Guards
from gateway.edge.witness import NOBODY, Witness
from gateway.expectation import close_in_doubt
from gateway.flight import FLIGHT
from gateway.invoke import Invoker
from gateway.router import Route, Router, parse_name

Last = Callable[[web.Request, Invoker, Entry, Route, Caller], Coroutine[Any, Any, web.StreamResponse]]
OnAnswer = Callable[[web.StreamResponse], None]
ON_ANSWER: web.RequestKey[list[OnAnswer]] = web.RequestKey("on_answer")


class Passage:
    """One listener's."""

    def __init__(
        self,
        router: Router,
        invoker: Invoker,
        doorman: Doorman,
        canaries: Canaries,
        guards: Guards,
        witness: Witness = NOBODY,
    ) -> None:
        self.router = router
        self.invoker = invoker
        self.doorman = doorman
        self.canaries = canaries
        self.guards = guards
        self.witness = witness

    def function(self, target: Target) -> Entry:
        """The entry of the function that `target` names. Raises NotFound; on the API listener with what is close."""
        namespace, name, qualifier = parse_name(target.name)
        try:
            return of_function(self.router.resolve(namespace, name, qualifier), target)
        except NotFound as error:
            if self.doorman.everybody_logs_in and (near := self.router.near(namespace, name)):
                raise NotFound(error.message, hint=f"did you mean {' or '.join(near)}?") from None
            raise

    def plain(self, entry: Entry) -> bool:
        """Whether no step of `through` has anything to do for requests to `entry`, so that `gateway.lane` may take
        them. Asked once per entry: whoever changes what this says calls `Router.changed`."""
        return (
            entry.public
            and not self.doorman.everybody_logs_in
            and entry.rules.none
            and entry.route.split is None
            and not self.guards.maintenance.covers(entry.route.label)
            and not self.witness.tracing
        )

    async def through(self, request: web.Request, entry: Entry, last: Last = call) -> web.StreamResponse:
        """The answer to `request`; `last` is the step that invokes. Raises FaasError."""
        if self.invoker.draining:
            raise ShuttingDown
        request[ENTRY] = entry
        if rule := entry.rules.cors:
            on_answer(request, partial(cors.admit, rule, request))
            if (answer := cors.preflight(rule, request)) is not None:
                return answer
        if (answer := await self.guards.closed(request, entry, self.doorman)) is not None:
            return answer
        terms.lay_down(request, entry, on_answer)
        caller = request[CALLER] = await self.doorman.admit(request, entry)
        entry = caller.seen(entry)
        async with self.guards.within(request, entry, caller, self.invoker) as trial:
            response = await self._called(request, entry, caller, last)
            trial.answered(response.status)
            return response

    async def _called(self, request: web.Request, entry: Entry, caller: Caller, last: Last) -> web.StreamResponse:
        """By the revision whose turn it is, within the route's time."""
        turn = self.canaries.choose(request, entry.route, caller)
        request[FLIGHT] = turn.flight
        if cookie := turn.cookie:
            on_answer(request, lambda response: response.headers.add("Set-Cookie", cookie))
        with turn as route:
            response = await terms.within(request, entry, last(request, self.invoker, entry, route, caller), on_answer)
            turn.answered(response.status)
            return response


def on_answer(request: web.Request, change: OnAnswer) -> None:
    """Have `change` see the head of the answer to `request`, whatever it will be, before it goes out."""
    request.setdefault(ON_ANSWER, []).append(change)


async def answering(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """aiohttp's signal `on_response_prepare`: what the steps add."""
    close_in_doubt(request, response)
    for change in request.get(ON_ANSWER, ()):
        change(response)
