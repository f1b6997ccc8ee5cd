"""`Passage`: the one way of a request through the edge, from its entry to its answer. Each step is a collaborator's.

    doorman     who may call                  401, 403
    call        the function

What a step adds to the answer's head, it says to `on_answer`: that runs before the first byte goes out, whether the
function, an error or we ourselves answer.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from faas.errors import NotFound, ShuttingDown
from gateway.edge.call import call
from gateway.edge.doorman import Doorman
from gateway.edge.entry import Entry, Target, of_function
from gateway.invoke import Invoker
from gateway.router import Router, parse_name

OnAnswer = Callable[[web.StreamResponse], None]
ON_ANSWER: web.RequestKey[list[OnAnswer]] = web.RequestKey("on_answer")
ENTRY = web.RequestKey("entry", Entry)


class Passage:
    """One listener's."""

    def __init__(self, router: Router, invoker: Invoker, doorman: Doorman) -> None:
        self.router = router
        self.invoker = invoker
        self.doorman = doorman

    def function(self, target: Target) -> Entry:
        """The entry of the function that `target` names. Raises NotFound; on the API listener with what is close."""
        namespace, name, qualifier = parse_name(target.name)
        try:
            return of_function(self.router.resolve(namespace, name, qualifier), target)
        except NotFound as error:
            if self.doorman.everybody_logs_in and (near := self.router.near(namespace, name)):
                raise NotFound(error.message, hint=f"did you mean {' or '.join(near)}?") from None
            raise

    async def through(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        """The answer to `request`. Raises FaasError."""
        if self.invoker.draining:
            raise ShuttingDown
        request[ENTRY] = entry
        caller = await self.doorman.admit(request, entry)
        return await call(request, self.invoker, entry, entry.route, caller)


def on_answer(request: web.Request, change: OnAnswer) -> None:
    """Have `change` see the head of the answer to `request`, whatever it will be, before it goes out."""
    request.setdefault(ON_ANSWER, []).append(change)


async def answering(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """aiohttp's signal `on_response_prepare`: what the steps add."""
    for change in request.get(ON_ANSWER, ()):
        change(response)
