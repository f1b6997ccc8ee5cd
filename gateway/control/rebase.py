"""A function onto the runtime base as it is now, after an update of the interpreter or a library; without source."""

from __future__ import annotations

import asyncio

from aiohttp import web

from faas.auth import Permission
from faas.errors import Conflict, Forbidden, InvalidInput, Unavailable
from faas.oci.reference import Reference
from faas.protocol import Revision
from faas.state.session import Transaction
from faas.web import PRINCIPAL, access, json_body
from gateway.control.operations import (
    FLAG,
    FUNCTION_NAME,
    TEXT,
    WHOLE,
    Operation,
    an_object,
    answer,
    function_name,
    known_keys,
)
from gateway.control.runtimes import BUILD_SECONDS
from gateway.gateway import GATEWAY
from gateway.router import LIVE


@access(Permission.CHANGE)
async def rebased(request: web.Request) -> web.Response:
    """A new revision of the live one's spec, checked as any other; the one before stays to go back to."""
    gateway, where = request.app[GATEWAY], function_name(request, Permission.CHANGE)
    body = await json_body(request) if request.can_read_body else {}
    known_keys(body, "dry_run")
    dry_run = body.get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise InvalidInput("dry_run is true or false")
    state = gateway.deployer.known(where.namespace, where.name)
    live = state.revisions[state.aliases[LIVE]]
    base = await gateway.staleness.base_of(live.image)
    if not base:
        raise Conflict(
            f"{where.name} stands on no runtime base", hint="it brings its own system: build its image anew and push it"
        )
    stale = await gateway.staleness.of(live)
    told = {"name": where.name, "namespace": where.namespace, "base": base, "stale": stale}
    if dry_run or not stale:
        return answer({**told, "changed": False, "revision": live.key.number, "image": live.image})
    repository = Reference.parse(live.image).local
    if not request[PRINCIPAL].may_use(Permission.PUSH, repository):  # that is where the new one goes
        raise Forbidden(f"{request[PRINCIPAL].title} may not push {repository}")
    try:
        async with asyncio.timeout(BUILD_SECONDS):
            image = await gateway.runtimes.rebase(live.image, base)
    except TimeoutError:
        raise Unavailable(f"the runtime base could not be built within {BUILD_SECONDS:g} s") from None
    finally:
        gateway.staleness.forget()

    async def nothing(tx: Transaction) -> None:
        """No row beside the revision's."""

    def is_still_live(revision: Revision) -> bool:
        return revision.key == live.key

    done = await gateway.deployer.redeploy(
        where.namespace, where.name, image, request[PRINCIPAL], when=is_still_live, also=nothing
    )
    if done is None:
        raise Conflict(f"{where.name} was deployed meanwhile", hint="see whether it is stale still: faas ls")
    revision = done.revision
    return answer({**told, "changed": done.changed, "revision": revision.key.number, "image": revision.image})


_DONE = an_object(
    ("name", "namespace", "base", "stale", "changed", "revision", "image"), name=FUNCTION_NAME, namespace=TEXT,
    base=TEXT, stale=TEXT, changed=FLAG, revision=WHOLE, image=TEXT,
)  # fmt: skip
OPERATIONS = (
    Operation(
        "POST", "/v1/functions/{name}/rebase", rebased, "Put a function on the runtime base as it is now", {200: _DONE},
        body=an_object(dry_run=FLAG),
    ),
)  # fmt: skip
