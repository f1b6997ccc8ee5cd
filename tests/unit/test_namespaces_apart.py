"""Two namespaces: neither sees, calls, pulls, mounts or names what is the other's. Whoever tries here may do everything
in a namespace of their own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from faas.auth import Principal, Role
from faas.leases import Trigger
from gateway.store import dead_letters
from gateway.store.invocations import QueuedEvent
from tests.support.control import DIGEST, Control, control
from tests.unit.test_registry_audit import BLOB, INDEX, MANIFEST, Door
from tests.unit.test_registry_audit import DIGEST as BLOB_DIGEST
from tests.unit.test_registry_audit import door as door
from tests.unit.test_roles import ANY_VERB, CONTRACT, PARTS

THEIRS = "hidden-from-us"  # in every name of the other namespace
OTHER = "other"
SHOWN = frozenset({  # lists that have something of the other namespace, for who may see it
    "functions", "apis", "routes", "keys", "plans", "schedules", "dead-letters", "users", "tokens", "audit", "budgets",
    "websockets", "secrets", "maintenance",
})  # fmt: skip


@dataclass
class Us:
    """`admin` may do everything in `us`, and has one foot in `elsewhere`; `user` the same, as a user's token."""

    server: Control
    admin: str
    user: str

    async def tries(self, verb: str, path: str, body: Any = None, *, public: bool = False) -> list[tuple[int, str]]:
        answers = [await self.server.call(verb, path, body, token=by, public=public) for by in (self.admin, self.user)]
        return [(answered.status, answered.body.decode(errors="replace")) for answered in answers]


async def put(server: Control, verb: str, path: str, body: Any, **options: Any) -> None:
    answered = await server.call(verb, path, body, **options)
    assert answered.status in (200, 201, 202, 204), (path, answered.status, answered.body)


@pytest.fixture
async def us(tmp_path: Path) -> AsyncIterator[Us]:
    async with control(tmp_path) as server:
        await server.deploy(
            THEIRS,
            namespace=OTHER,
            public=False,
            schedule=[{"name": THEIRS, "cron": "0 0 1 1 *"}],
            route=[{"path": f"/{THEIRS}"}],
        )
        await server.deploy("mine", namespace="us")
        full = f"{THEIRS}.{OTHER}"
        await put(
            server,
            "PUT",
            f"/v1/apis/{full}",
            {"base_path": f"/{OTHER}/shop", "routes": [{"path": "/x", "function": THEIRS}]},
        )
        await put(server, "PUT", f"/v1/websockets/{full}", {"routes": {"$default": {"function": THEIRS}}})
        await put(server, "PUT", f"/v1/plans/{full}", {"rate": 1, "functions": [THEIRS]})
        await put(server, "POST", "/v1/keys", {"name": THEIRS, "namespace": OTHER})
        await put(server, "PUT", f"/v1/budgets/{full}", {"requests": 5, "function": THEIRS})
        await put(server, "PUT", f"/v1/maintenance/{full}", {"message": THEIRS})
        await put(server, "PUT", f"/v1/functions/{full}/aliases/{THEIRS}", {"revision": 1})
        await put(server, "PUT", f"/v1/secrets/{full}", {"value": "czNjcmV0"})
        await put(server, "POST", "/v1/users", {"name": THEIRS, "roles": {OTHER: "admin"}})
        await put(server, "POST", "/v1/tokens", {"name": THEIRS + ".ci", "role": "admin", "namespace": OTHER})
        event = {"X-Faas-Invocation-Type": "Event"}
        await put(server, "POST", f"/v1/functions/{full}/invocations", b"{}", headers=event)
        letter = QueuedEvent(id="letter-1", namespace=OTHER, function=THEIRS, trigger=Trigger.ASYNC, payload=b"x")
        async with server.gateway.database.write() as tx:
            await tx.run_sync(dead_letters.add, letter, 1.0)
        admin = await server.a_token("admin", "us")
        roles = {"us": "admin", "elsewhere": "viewer"}
        await put(server, "POST", "/v1/users", {"name": "ada", "roles": roles})
        made = await server.call("POST", "/v1/tokens", {"name": "a", "user": "ada"})
        yield Us(server, admin, made.json()["token"])


async def test_no_list_has_anything_of_the_other_namespace(us: Us) -> None:
    lists = [path for path, verbs in CONTRACT.items() if "GET" in verbs and "{" not in path and path != "/v1/builds"]
    assert len(lists) > 15
    for path in lists:
        everything = await us.server.call("GET", path)
        for status, body in await us.tries("GET", path):
            assert THEIRS not in body, path
            assert status in (200, 400, 403, 404), (path, body)
        if path.removeprefix("/v1/") in SHOWN:
            assert THEIRS in everything.body.decode(), path  # it is there to be hidden
    for path in (*SHOWN - {"users", "tokens", "maintenance"}, "triggers", "top", "usage"):
        for status, body in await us.tries("GET", f"/v1/{path}?namespace={OTHER}"):
            assert status in (403, 404), (path, body)
            assert THEIRS not in body


async def test_nothing_of_the_other_namespace_is_read_changed_or_called_by_its_name(us: Us) -> None:
    """Every route that names something, with what is there and with what is not: the answers are the same."""
    own = {"{alias}": THEIRS, "{schedule}": THEIRS, "{id}": "letter-1", "{token}": f"{THEIRS}.ci", "{user}": THEIRS}
    table = [(path, verb) for path, verbs in CONTRACT.items() for verb in verbs if "{" in path]
    table += [(path, verb) for path in ANY_VERB for verb in ("GET", "POST") if "function/{name}" in path]
    told = []
    for path, verb in table:
        if "{runtime}" in path:
            continue
        there, missing = path, path
        for part, value in {**PARTS, **own, "{name}": f"{THEIRS}.{OTHER}"}.items():
            there = there.replace(part, value)
        for part, value in {**PARTS, "{name}": f"no-such-thing-x.{OTHER}"}.items():
            missing = missing.replace(part, value)
        body = {} if verb in ("PUT", "POST", "PATCH") else None
        for (status, words), (as_missing, _) in zip(
            await us.tries(verb, there, body), await us.tries(verb, missing, body), strict=True
        ):
            of_an_id = "{id}" in path  # which nobody guesses: 403 says that it is there
            if status < 400 or not (of_an_id or status == as_missing):
                told.append((verb, there, status, as_missing, words))
    assert told == []
    assert us.server.gateway.router.state(OTHER, THEIRS) is not None


async def test_nothing_of_ones_own_reaches_into_the_other_namespace(us: Us) -> None:
    full, image = f"{THEIRS}.{OTHER}", f"us/mine@{DIGEST}"

    def deploy(**spec: Any) -> Any:
        return {"spec": {"name": "mine", **spec}, "image": image}

    for verb, path, body in (
        ("PUT", "/v1/functions/mine.us", {"spec": {"name": "mine"}, "image": f"{OTHER}/{THEIRS}@{DIGEST}"}),
        ("PUT", "/v1/functions/mine.us", deploy(**{"async": {"on_failure": full}})),
        ("PUT", "/v1/functions/mine.us", deploy(auth={"authorizer": {"function": full}})),
        ("PUT", "/v1/functions/mine.us", deploy(secrets={"X": full})),
        ("PUT", "/v1/functions/mine.us", deploy(secrets={"X": THEIRS})),  # a name that only the other one has
        ("PUT", "/v1/apis/mine.us", {"base_path": "/us/x", "routes": [{"path": "/x", "function": full}]}),
        ("PUT", "/v1/websockets/mine.us", {"routes": {"$default": {"function": full}}}),
        ("PUT", "/v1/websockets/mine.us", {"routes": {"$default": {"function": THEIRS}}}),
        ("PUT", "/v1/websockets/mine.us", {"path": f"/ws/{full}", "routes": {"$default": {"function": "mine"}}}),
        ("PUT", "/v1/plans/mine.us", {"rate": 1, "functions": [full]}),
        ("POST", "/v1/keys", {"name": "k", "namespace": OTHER}),
        ("POST", "/v1/keys", {"name": "k", "namespace": "us", "plan": THEIRS}),
        ("POST", "/v1/keys", {"name": "k", "namespace": "us", "functions": [full]}),
        ("PATCH", f"/v1/keys/{full}", {"plan": ""}),
        ("PUT", "/v1/budgets/mine.us", {"requests": 1, "function": full}),
        ("PUT", "/v1/maintenance/*", {"message": "x"}),
        ("POST", "/v1/tokens", {"name": "x", "role": "viewer"}),
        ("POST", "/v1/tokens", {"name": "x", "role": "viewer", "namespace": OTHER}),
        ("POST", "/v1/tokens", {"name": "x", "user": THEIRS}),
        ("PATCH", "/v1/users/ada", {"roles": {OTHER: "viewer"}}),
    ):
        for status, words in await us.tries(verb, path, body):
            assert 400 <= status < 500, (path, body, words)
    await put(us.server, "PUT", "/v1/functions/mine.us", deploy(**{"async": {"on_failure": THEIRS}}), token=us.admin)
    state = us.server.gateway.router.state("us", "mine")
    assert state is not None  # where it fails, a function of its own namespace is looked for, and no other


async def test_a_key_of_one_namespace_opens_nothing_in_the_other(us: Us) -> None:
    made = await us.server.call("POST", "/v1/keys", {"name": "k", "namespace": "us"}, token=us.admin)
    rule = {"auth": {"key": {}}}
    await us.server.deploy("mine", namespace="us", **rule, public=False)
    await us.server.deploy("open", namespace=OTHER, **rule, public=False)
    sent = {"X-Api-Key": made.json()["key"]}
    own = await us.server.call("GET", "/function/mine.us", token="", headers=sent, public=True)
    foreign = await us.server.call("GET", "/function/open.other", token="", headers=sent, public=True)
    assert (own.status, foreign.status) == (200, 403)


async def test_a_function_on_an_image_of_another_namespace_is_not_rebased_into_that(
    us: Us, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def said(_: object) -> str:
        return "runtime/python:3.11"

    for name in ("base_of", "of"):
        monkeypatch.setattr(us.server.gateway.staleness, name, said)
    body = {"spec": {"name": "onit"}, "image": f"{OTHER}/onit@{DIGEST}"}
    await put(us.server, "PUT", "/v1/functions/onit.us", body)
    await put(us.server, "POST", "/v1/users", {"name": "reader", "roles": {"us": "deployer", OTHER: "viewer"}})
    made = await us.server.call("POST", "/v1/tokens", {"name": "t", "user": "reader"})
    path, by = "/v1/functions/onit.us/rebase", made.json()["token"]
    assert (await us.server.call("POST", path, {"dry_run": True}, token=by)).status == 200
    refused = await us.server.call("POST", path, token=by)
    assert (refused.status, "may not push other/onit" in refused.json()["error"]["message"]) == (403, True)


async def test_strangers_are_told_no_names(us: Us) -> None:
    for path in (f"/function/{THEIRS[:-1]}.{OTHER}", f"/function/{THEIRS}.us", f"/{THEIRS}", "/us/nothing"):
        answered = await us.server.call("GET", path, public=True)
        assert answered.status == 404
        assert THEIRS not in answered.body.decode()
        assert "mine" not in answered.body.decode()


# Images


async def test_images_of_the_other_namespace_are_neither_seen_nor_touched(door: Door) -> None:
    store = door.registry.access.accounts
    assert store is not None
    await door.call("POST", f"/v2/{OTHER}/app/blobs/uploads/?digest={BLOB_DIGEST}", BLOB)
    await door.call("PUT", f"/v2/{OTHER}/app/manifests/v1", MANIFEST, Content_Type=INDEX)
    accounts: Any = store
    _, door.tokens["us"] = await accounts.create(Principal("us", Role.ADMIN, "us"))
    await accounts.users.create("ada", {"us": Role.ADMIN, "elsewhere": Role.DEPLOYER}, "admin")
    _, door.tokens["ada"] = await accounts.create(Principal("a", Role.ADMIN), user="ada")
    for by in ("us", "ada"):
        for verb, path, body in (
            ("GET", "manifests/v1", b""),
            ("HEAD", "manifests/v1", b""),
            ("GET", f"blobs/{BLOB_DIGEST}", b""),
            ("GET", "tags/list", b""),
            ("GET", f"referrers/{BLOB_DIGEST}", b""),
            ("PUT", "manifests/v2", MANIFEST),
            ("POST", "blobs/uploads/", b""),
            ("DELETE", "manifests/v1", b""),
            ("DELETE", f"blobs/{BLOB_DIGEST}", b""),
        ):
            status, _ = await door.call(verb, f"/v2/{OTHER}/app/{path}", body, by, Content_Type=INDEX)
            assert status == 403, (by, verb, path)
        status, _ = await door.call("GET", f"/v2/us/app/blobs/{BLOB_DIGEST}", by=by)
        assert status == 404  # the bytes are here, and yet not theirs
        for source in (f"&from={OTHER}/app", ""):
            status, where = await door.call("POST", f"/v2/us/app/blobs/uploads/?mount={BLOB_DIGEST}{source}", by=by)
            assert (status, BLOB_DIGEST in where) == (202, False)  # an upload, as for bytes that nobody has
        for path in ("_catalog", f"_faas/images/{OTHER}/app/v1", "_faas/policies", "_faas/quotas"):
            url, sent = f"{door.url}/v2/{path}", {"Authorization": f"Bearer {door.tokens[by]}"}
            async with door.session.get(url, headers=sent) as answer:
                assert f"{OTHER}/" not in json.dumps((await answer.json()).get("repositories", []))
                assert answer.status in (200, 403)
        for verb, path in (
            ("PUT", f"_faas/policies/{OTHER}/*"),
            ("DELETE", f"_faas/retention/{OTHER}/*"),
            ("PUT", f"_faas/quotas/{OTHER}"),
            ("PUT", "_faas/policies/*"),
            ("POST", "_faas/gc"),
        ):
            status, _ = await door.call(verb, f"/v2/{path}", b"{}", by)
            assert status == 403, path
    status, _ = await door.call("GET", f"/v2/{OTHER}/app/manifests/v1")
    assert status == 200


async def test_a_short_lived_token_of_the_registry_ends_with_its_user(door: Door) -> None:
    accounts: Any = door.registry.access.accounts
    await door.call("PUT", "/v2/us/app/manifests/v1", MANIFEST, Content_Type=INDEX)
    await accounts.users.create("ada", {"us": Role.DEPLOYER}, "admin")
    _, door.tokens["ada"] = await accounts.create(Principal("a", Role.ADMIN), user="ada")
    sent = {"Authorization": f"Bearer {door.tokens['ada']}"}
    async with door.session.get(f"{door.url}/token?scope=repository:us/app:pull,push", headers=sent) as answer:
        door.tokens["short"] = (await answer.json())["token"]

    async def pulled(by: str = "short") -> int:
        return (await door.call("GET", "/v2/us/app/manifests/v1", by=by))[0]

    assert await pulled() == 200
    await accounts.users.set_roles("ada", {"us": Role.CALLER})
    assert await pulled() == 401  # what it says is more than its owner has now
    await accounts.users.set_roles("ada", {"us": Role.VIEWER})
    assert await pulled() == 200
    assert (await door.call("PUT", "/v2/us/app/manifests/v2", MANIFEST, "short", Content_Type=INDEX))[0] == 401
    await accounts.users.remove("ada")
    assert (await pulled(), await pulled("ada")) == (401, 401)
