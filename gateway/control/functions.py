"""Functions: listed, described, deployed, deleted."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from faas.auth import Permission
from faas.errors import InitFailed, InvalidInput, NotFound
from faas.protocol import RevisionStats
from faas.web import PRINCIPAL, REQUEST_ID, access, error_body, error_headers, json_body
from gateway import diagnosis
from gateway.conditions import Observed
from gateway.control.operations import (
    FLAG,
    FUNCTION_NAME,
    TEXT,
    TIME,
    WHOLE,
    Operation,
    a_list,
    a_text,
    a_whole_list,
    an_object,
    answer,
    function_name,
    known_keys,
    may,
    namespace_asked,
    stamp,
)
from gateway.diagnosis import Troubles
from gateway.edge.canary.shown import shown as canary_shown
from gateway.gateway import GATEWAY, Gateway
from gateway.router import LIVE, FunctionState, function_label
from gateway.store import follows, functions
from gateway.store.follows import Outcome
from gateway.store.functions import FunctionRow

HIDDEN = "***"

INSTANCES = an_object(("starting", "idle", "busy"), starting=WHOLE, idle=WHOLE, busy=WHOLE)
FUNCTION = an_object(
    ("name", "namespace", "revision", "state", "url"),
    more=True,
    name=TEXT,
    namespace=TEXT,
    revision=WHOLE,
    state={"type": "string", "enum": ["ready", "unchecked"]},
    reason=TEXT,
    **diagnosis.PROPERTIES,
    image=TEXT,
    stale=TEXT,
    interface={"type": "string", "enum": ["lambda", "http", "auto"]},
    memory=WHOLE,
    timeout=WHOLE,
    public=FLAG,
    url=TEXT,
    runtime=TEXT,
    created_at=TIME,
    updated_at=TIME,
    instances=INSTANCES,
    schedules=WHOLE,
    triggers=WHOLE,
    learned=an_object(
        ("linger_seconds", "prewarm_seconds", "keep_seconds", "reason", "seen"),
        linger_seconds={"type": "number"},
        prewarm_seconds={"type": "number"},
        keep_seconds={"type": "number"},
        reason=TEXT,
        seen=WHOLE,
    ),
    circuit={"type": "string", "enum": ["closed", "half-open", "open"]},
    follow=an_object(
        ("tag", "state"),
        tag=TEXT,
        state={"type": "string", "enum": ["waiting", "deployed", "failed", "retrying", "skipped"]},
        digest=TEXT,
        error=TEXT,
        at=TIME,
    ),
)


def counted(stats: RevisionStats) -> dict[str, int]:
    return {"starting": stats.starting, "idle": stats.idle, "busy": stats.busy}


def shown(gateway: Gateway, state: FunctionState, row: FunctionRow, seen: Observed) -> dict[str, Any]:
    """A function as every answer shows it: its live revision."""
    revision = state.revisions[state.aliases[LIVE]]
    spec, label = revision.spec, function_label(state.namespace, state.name)
    return {
        "name": state.name,
        "namespace": state.namespace,
        "revision": revision.key.number,
        "state": "unchecked" if revision.interface.value == "auto" else "ready",
        **diagnosis.summary(seen),
        "image": revision.image,
        "interface": revision.interface.value,
        "memory": spec.memory,
        "timeout": spec.timeout,
        "public": spec.public,
        "url": f"{gateway.info.public_url}/function/{label}",
        "runtime": spec.runtime or "image",
        "created_at": stamp(row.created_at),
        "updated_at": stamp(row.updated_at),
        "instances": counted(seen.stats),
        "schedules": len(spec.schedules),
        "triggers": len(spec.triggers),
    }


async def one(request: web.Request, namespace: str, name: str) -> dict[str, Any]:
    """A function as it is now. Raises NotFound."""
    gateway = request.app[GATEWAY]
    state = gateway.deployer.known(namespace, name)
    async with gateway.database.read() as tx:
        row = await functions.get(tx, namespace, name) or FunctionRow(namespace, name, 0.0, 0.0)
    seen = diagnosis.observed(gateway, state, row.updated_at, Troubles.now(gateway))
    return shown(gateway, state, row, seen)


def followed(tag: str, outcome: Outcome | None) -> dict[str, Any]:
    """The tag that a function follows, and what became of its last push."""
    if outcome is None or outcome.tag != tag:
        return {"tag": tag, "state": "waiting"}
    told = {"digest": outcome.digest, "error": outcome.error, "at": stamp(outcome.at)}
    return {"tag": tag, "state": outcome.state.value, **told}


@access(Permission.READ)
async def listed(request: web.Request) -> web.Response:
    gateway, namespace = request.app[GATEWAY], namespace_asked(request)
    async with gateway.database.read() as tx:
        rows = await functions.every(tx)
    mine = [
        (row, state)
        for row in rows
        if namespace in ("", row.namespace)
        and may(request, Permission.READ, row.namespace, row.name)
        and (state := gateway.router.state(row.namespace, row.name)) is not None
        and state.live is not None
    ]
    stale = [await gateway.staleness.of(state.revisions[state.aliases[LIVE]]) for _, state in mine]
    troubles = Troubles.now(gateway)
    lines = (_line(gateway, state, row, why, troubles) for (row, state), why in zip(mine, stale, strict=True))
    return await a_whole_list("functions", lines)


def _line(gateway: Gateway, state: FunctionState, row: FunctionRow, stale: str, troubles: Troubles) -> bytes:
    """A function in the list, as JSON."""
    seen = diagnosis.observed(gateway, state, row.updated_at, troubles)
    return gateway.summaries.text(
        seen.name, (row, seen, stale), lambda: shown(gateway, state, row, seen) | {"stale": stale}
    )


def _known(gateway: Gateway, namespace: str, name: str) -> FunctionState:
    """Raises NotFound, with why its first deploy failed where there was one."""
    try:
        return gateway.deployer.known(namespace, name)
    except NotFound as error:
        if (failed := gateway.failed_deploys.of(namespace, name)) is None:
            raise
        words = f"its first deploy failed: {failed.message}"
        raise NotFound(error.message, hint=f"{words}\n{failed.hint}".rstrip()) from None


@access(Permission.READ)
async def described(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.READ)
    state = _known(gateway, where.namespace, where.name)
    revision = state.revisions[state.aliases[LIVE]]
    async with gateway.database.read() as tx:
        row = await functions.get(tx, where.namespace, where.name)
        outcome = await follows.get(tx, where.namespace, where.name)
    row = row or FunctionRow(where.namespace, where.name, 0.0, 0.0)
    troubles = Troubles.now(gateway)
    seen = diagnosis.observed(gateway, state, row.updated_at, troubles)
    function = shown(gateway, state, row, seen)
    seen = await diagnosis.looked_into(gateway, seen, outcome)
    function |= diagnosis.summary(seen) | diagnosis.page(seen)
    spec = revision.spec.to_dict()
    if not may(request, Permission.ADMIN, where.namespace, where.name):
        spec["env"] = dict.fromkeys(spec["env"], HIDDEN)
    function |= {
        "spec": spec,
        "aliases": state.aliases,
        "canaries": {alias: canary_shown(canary) for alias, canary in sorted(state.canaries.items())},
        "instances_list": [instance_shown(i) for i in gateway.worker.instances(revision.key)],
        "revisions": len(state.revisions),
        "stale": await gateway.staleness.of(revision),
    }
    scale = revision.spec.scale
    if scale.learns and (learned := gateway.path.patterns.shown(revision.key, scale.idle_seconds)) is not None:
        function["learned"] = learned
    if circuit := troubles.circuits.get(revision.key):
        function["circuit"] = circuit
    if revision.spec.follow:
        function["follow"] = followed(revision.spec.follow, outcome)
    return answer(function)


def instance_shown(instance: Any) -> dict[str, Any]:
    return {
        "id": instance.id,
        "state": instance.state,
        "started_at": instance.started_at,
        "idle_seconds": instance.idle_seconds,
        "invocations": instance.invocations,
        "memory_bytes": instance.memory_bytes,
    }


def _live(gateway: Gateway, namespace: str, name: str) -> int:
    """The number of the revision that is live; 0 where none is."""
    state = gateway.router.state(namespace, name)
    return state.live.key.number if state is not None and state.live is not None else 0


@access(Permission.CHANGE)
async def deployed(request: web.Request) -> web.Response:
    gateway, where = request.app[GATEWAY], function_name(request, Permission.CHANGE)
    body = await json_body(request)
    known_keys(body, "spec", "image", "check")
    spec, check = body.get("spec"), body.get("check", True)
    if not isinstance(spec, dict) or not isinstance(check, bool):
        raise InvalidInput("a deploy needs spec (an object); check is true or false")
    image, by = a_text(body, "image", ""), request[PRINCIPAL]
    try:
        done = await gateway.failed_deploys.noted(
            where.namespace,
            where.name,
            gateway.deployer.deploy(where.namespace, where.name, spec, image, check=check, by=by),
            live=lambda: _live(gateway, where.namespace, where.name),
            image=image,
            by=by.name,
            request_id=request[REQUEST_ID],
        )
    except InitFailed as error:
        refusal = error_body(error, request[REQUEST_ID])
        refusal["error"]["log_tail"] = error.log_tail
        return web.json_response(refusal, status=error.status, headers=error_headers(error))
    function = await one(request, where.namespace, where.name)
    report = done.check
    function |= {
        "changed": done.changed,
        "warnings": list(done.warnings),
        "check": {"interface": report.interface.value, "init_seconds": report.init_seconds} if report else None,
    }
    return answer(function, 201 if done.created else 200)


@access(Permission.CHANGE)
async def deleted(request: web.Request) -> web.Response:
    where = function_name(request, Permission.CHANGE)
    await request.app[GATEWAY].deployer.delete(where.namespace, where.name)
    return web.Response(status=204)


_PATH = "/v1/functions/{name}"
_DEPLOY = an_object(("spec",), spec=an_object(("name",), more=True, name=FUNCTION_NAME), image=TEXT, check=FLAG)
OPERATIONS = (
    Operation(
        "GET", "/v1/functions", listed, "All functions that the caller may read",
        {200: an_object(("functions",), functions=a_list(FUNCTION))}, query={"namespace": TEXT},
    ),
    Operation("GET", _PATH, described, "One function, with its specification", {200: FUNCTION}),
    Operation("PUT", _PATH, deployed, "Deploy a new revision", {200: FUNCTION, 201: FUNCTION}, body=_DEPLOY),
    Operation("DELETE", _PATH, deleted, "Delete a function and everything it has", {204: None}),
)  # fmt: skip
