"""Every verb × route × role, against a table written from the contract, not from the code."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.auth import Permission
from faas.web import needed
from gateway.app import api_app
from tests.support.control import DIGEST, Control, control

ROLES = ("anonymous", "caller", "scraper", "viewer", "deployer", "admin")
VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

EVERYBODY = set(ROLES)
KNOWN = EVERYBODY - {"anonymous"}
INVOKERS = {"caller", "deployer", "admin"}
SCRAPERS = {"scraper", "viewer", "deployer", "admin"}
READERS = {"viewer", "deployer", "admin"}
CHANGERS = {"deployer", "admin"}
ADMINS = {"admin"}

# path (as the listener has it) → verb → who may. A verb that is not here is nobody's: 405, or 401 for a stranger.
CONTRACT: dict[str, dict[str, set[str]]] = {
    "/healthz": {"GET": EVERYBODY},
    "/readyz": {"GET": EVERYBODY},
    "/metrics": {"GET": SCRAPERS},
    "/v1/ca": {"GET": EVERYBODY},
    "/v1/info": {"GET": READERS},
    "/v1/openapi.json": {"GET": READERS},
    "/v1/settings": {"GET": ADMINS},
    "/v1/doctor": {"GET": ADMINS},
    "/v1/functions": {"GET": READERS},
    "/v1/functions/{name}": {"GET": READERS, "PUT": CHANGERS, "DELETE": CHANGERS},
    "/v1/functions/{name}/revisions": {"GET": READERS},
    "/v1/functions/{name}/rollback": {"POST": CHANGERS},
    "/v1/functions/{name}/rebase": {"POST": CHANGERS},
    "/v1/functions/{name}/aliases/{alias}": {"PUT": CHANGERS, "DELETE": CHANGERS},
    "/v1/functions/{name}/instances": {"GET": READERS},
    "/v1/functions/{name}/scale": {"POST": CHANGERS},
    "/v1/functions/{name}/logs": {"GET": READERS},
    "/v1/functions/{name}/debug": {"GET": CHANGERS},
    "/v1/functions/{name}/invocations": {"POST": INVOKERS},
    "/v1/functions/{name}/schedules/{schedule}/history": {"GET": READERS},
    "/v1/top": {"GET": READERS},
    "/v1/invocations/{id}": {"GET": READERS},
    "/v1/schedules": {"GET": READERS},
    "/v1/triggers": {"GET": READERS},
    "/v1/dead-letters": {"GET": READERS},
    "/v1/dead-letters/{id}": {"GET": READERS, "DELETE": CHANGERS},
    "/v1/dead-letters/{id}/retry": {"POST": CHANGERS},
    "/v1/apis": {"GET": READERS},
    "/v1/apis/{name}": {"GET": READERS, "PUT": CHANGERS, "DELETE": CHANGERS},
    "/v1/apis/{name}/routes": {"GET": READERS, "POST": CHANGERS},
    "/v1/apis/{name}/routes/{route}": {"GET": READERS, "DELETE": CHANGERS},
    "/v1/apis/{name}/openapi.json": {"GET": READERS, "PUT": CHANGERS},
    "/v1/routes": {"GET": READERS},
    "/v1/usage": {"GET": READERS},
    "/v1/budgets": {"GET": READERS},
    "/v1/budgets/{name}": {"GET": READERS, "PUT": ADMINS, "DELETE": ADMINS},
    "/v1/keys": {"GET": ADMINS, "POST": ADMINS},
    "/v1/keys/{name}": {"DELETE": ADMINS, "PATCH": ADMINS},
    "/v1/keys/{name}/rotate": {"POST": ADMINS},
    "/v1/plans": {"GET": READERS},
    "/v1/plans/{name}": {"GET": READERS, "PUT": ADMINS, "DELETE": ADMINS},
    "/v1/plans/{name}/usage": {"GET": READERS},
    "/v1/maintenance": {"GET": READERS},
    "/v1/maintenance/{name}": {"PUT": CHANGERS, "DELETE": CHANGERS},
    "/v1/websockets": {"GET": READERS},
    "/v1/websockets/{name}": {"GET": READERS, "PUT": CHANGERS, "DELETE": CHANGERS},
    "/v1/websockets/{name}/connections": {"GET": READERS},
    "/@connections/{id}": {"GET": INVOKERS, "POST": INVOKERS, "DELETE": INVOKERS},
    "/{stage}/@connections/{id}": {"GET": INVOKERS, "POST": INVOKERS, "DELETE": INVOKERS},
    "/v1/whoami": {"GET": KNOWN},
    "/v1/users": {"GET": ADMINS, "POST": ADMINS},
    "/v1/users/{user}": {"GET": ADMINS, "PATCH": ADMINS, "DELETE": ADMINS},
    # Everybody sees and revokes their own; who may make some is below, and in test_users.py.
    "/v1/tokens": {"GET": KNOWN, "POST": ADMINS},
    "/v1/tokens/{token}": {"DELETE": KNOWN},
    "/v1/tokens/{token}/rotate": {"POST": KNOWN},
    "/v1/audit": {"GET": ADMINS},
    "/v1/audit/verify": {"GET": ADMINS},
    "/v1/backups": {"POST": ADMINS},
    "/v1/backups/{id}": {"DELETE": ADMINS},
    "/v1/backups/{id}/files/{file}": {"GET": ADMINS},
    "/v1/backups/{id}/blobs/{digest}": {"GET": ADMINS},
    "/v1/secrets": {"GET": READERS},
    "/v1/secrets/{name}": {"GET": READERS, "PUT": CHANGERS, "DELETE": CHANGERS},
    "/v1/secrets-key/rotate": {"POST": ADMINS},
    "/v1/notifications": {"GET": ADMINS},
    "/v1/notifications/{name}": {"GET": ADMINS, "PUT": ADMINS, "DELETE": ADMINS},
    "/v1/notifications/{name}/test": {"POST": ADMINS},
    "/v1/dev": {"GET": READERS},
    "/v1/dev/{name}": {"PUT": CHANGERS, "DELETE": CHANGERS},
    "/v1/dev/{name}/code": {"PUT": CHANGERS},
    "/v1/dev/{name}/beat": {"POST": CHANGERS},
    "/v1/builds": {"GET": CHANGERS},
    "/v1/runtimes": {"GET": READERS},
    "/v1/runtimes/{runtime}": {"PUT": CHANGERS},
}
# Any verb: functions themselves, and what is refused by name.
ANY_VERB: dict[str, set[str]] = {
    "/function/{name}": INVOKERS,
    "/function/{name}/{path}": INVOKERS,
    "/async-function/{name}": INVOKERS,
    "/async-function/{name}/{path}": INVOKERS,
    "/v1/{noun}": READERS,
    "/v1/{noun}/{rest}": READERS,
    "/{date}/functions{rest}": READERS,
}
PARTS = {
    "{name}": "hello",
    "{path}": "a/b",
    "{alias}": "none",
    "{schedule}": "none",
    "{id}": "none",
    "{token}": "none",
    "{user}": "none",
    "{runtime}": "python",
    "{file}": "faas.db",
    "{digest}": "none",
    "{route}": "none",
    "{noun}": "restore",
    "{rest}": "/x",
    "{date}": "2015-03-31",
    "{stage}": "live",
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        await running.deploy()
        yield running


def concrete(path: str) -> str:
    for part, value in PARTS.items():
        path = path.replace(part, value)
    return path


async def test_every_route_is_in_the_table_and_every_line_of_the_table_is_a_route(server: Control) -> None:
    app = api_app(server.gateway, server.gateway.tokens)
    served: dict[str, set[str]] = {}
    for route in app.router.routes():
        assert route.resource is not None
        served.setdefault(route.resource.canonical, set()).add(route.method)
    assert served == {path: set(verbs) for path, verbs in CONTRACT.items()} | {path: {"*"} for path in ANY_VERB}


async def test_every_verb_of_every_route_admits_exactly_the_roles_of_the_contract(server: Control) -> None:
    tokens = {role: await server.a_token(role) for role in ROLES if role != "anonymous"} | {"anonymous": ""}
    wrong = []
    table = [(path, verb, verbs.get(verb)) for path, verbs in CONTRACT.items() for verb in VERBS]
    table += [(path, verb, who) for path, who in ANY_VERB.items() for verb in VERBS]
    for path, verb, who in table:
        for role in ROLES:
            # A deploy would have to be repeated for each role; an empty one is refused only behind the door.
            answered = await server.call(verb, concrete(path), token=tokens[role])
            if role == "anonymous" and (who is None or role not in who):
                right = answered.status == 401
            elif who is None:
                right = answered.status == 405
            elif role in who:
                right = answered.status not in (401, 403, 405, 500)
            else:
                right = answered.status == 403
            if not right:
                wrong.append((verb, path, role, answered.status))
        if verb == "DELETE" and path == "/v1/functions/{name}":
            await server.deploy()
    assert wrong == []


async def test_the_public_listener_has_functions_and_nothing_else(server: Control) -> None:
    for path in (*CONTRACT, "/v1/secrets", "/", "/ui/", "/v2/"):
        for verb in VERBS:
            answered = await server.call(verb, concrete(path), public=True, token=server.token)
            assert answered.status == 404, (verb, path)


async def test_a_function_that_is_not_public_asks_strangers_for_credentials(server: Control) -> None:
    await server.deploy("closed", public=False)
    tokens = {role: await server.a_token(role) for role in ROLES if role != "anonymous"} | {"anonymous": ""}
    for path in ("/function/closed", "/async-function/closed"):
        for role, token in tokens.items():
            answered = await server.call("POST", path, public=True, token=token)
            expected = {200, 202} if role in INVOKERS else {401} if role == "anonymous" else {403}
            assert answered.status in expected, (path, role)
    assert (await server.call("GET", "/function/hello", public=True, token="")).status == 200


async def test_metrics_are_open_where_the_listener_is_bound_to_loopback(tmp_path: Path) -> None:
    async with control(tmp_path, open_metrics=True) as server:
        answered = await server.call("GET", "/metrics", token="")
        assert answered.status == 200
        assert b"faas_build_info" in answered.body


async def test_a_namespaces_tokens_reach_that_namespace_only(server: Control) -> None:
    await server.deploy("hello", namespace="team")
    await server.call(
        "POST", "/v1/functions/hello.team/invocations", b"{}", headers={"X-Faas-Invocation-Type": "Event"}
    )
    viewer, deployer = await server.a_token("viewer", "team"), await server.a_token("deployer", "team")
    caller, admin = await server.a_token("caller", "team", ("hello",)), await server.a_token("admin", "team")
    listed = (await server.call("GET", "/v1/functions", token=viewer)).json()["functions"]
    assert [(f["namespace"], f["name"]) for f in listed] == [("team", "hello")]
    image = {"spec": {"name": "hello"}, "image": f"team/hello@{DIGEST}"}
    foreign = {"spec": {"name": "thief"}, "image": f"other/hello@{DIGEST}"}
    for token, verb, path, body, status in (
        (viewer, "GET", "/v1/functions/hello.team", None, 200),
        (viewer, "GET", "/v1/functions/hello", None, 403),
        (viewer, "GET", "/v1/top?namespace=team", None, 200),
        (viewer, "GET", "/v1/top?namespace=default", None, 403),
        (viewer, "GET", "/v1/functions?namespace=default", None, 403),
        (viewer, "GET", "/v1/functions/hello/logs", None, 403),
        (deployer, "PUT", "/v1/functions/hello.team", image, 200),
        (deployer, "PUT", "/v1/functions/hello", {"spec": {"name": "hello"}, "image": f"hello@{DIGEST}"}, 403),
        (deployer, "PUT", "/v1/functions/thief.team", foreign, 403),
        (deployer, "DELETE", "/v1/functions/hello", None, 403),
        (deployer, "POST", "/function/hello", None, 403),
        (caller, "POST", "/function/hello.team", None, 200),
        (caller, "POST", "/function/hello", None, 403),
        (admin, "POST", "/v1/tokens", {"name": "more", "role": "admin"}, 403),
        (admin, "POST", "/v1/tokens", {"name": "mine", "role": "viewer", "namespace": "team"}, 201),
        (admin, "DELETE", "/v1/tokens/viewer-9", None, 404),
        (admin, "GET", "/v1/settings", None, 403),
        (admin, "GET", "/metrics", None, 403),
    ):
        answered = await server.call(verb, path, body, token=token)
        assert answered.status == status, (verb, path, answered.body)
    seen = (await server.call("GET", "/v1/tokens", token=admin)).json()["tokens"]
    assert {row["namespace"] for row in seen} == {"team"}


async def test_a_callers_key_is_good_for_the_functions_it_names(server: Control) -> None:
    await server.deploy("other")
    token = await server.a_token("caller", "default", ("hello",))
    assert (await server.call("POST", "/function/hello", token=token)).status == 200
    for path in ("/function/other", "/async-function/other", "/v1/functions/other/invocations"):
        assert (await server.call("POST", path, token=token)).status == 403


async def test_every_operation_says_in_its_description_what_it_needs(server: Control) -> None:
    described = (await server.call("GET", "/v1/openapi.json")).json()
    app = api_app(server.gateway, server.gateway.tokens)
    for route in app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        if path in CONTRACT:
            operation = described["paths"][path][route.method.lower()]
            assert operation["x-permission"] == needed(route.handler).value
            assert operation["security"] or operation["x-permission"] == Permission.NOTHING.value
    assert set(described["paths"]) == set(CONTRACT)
