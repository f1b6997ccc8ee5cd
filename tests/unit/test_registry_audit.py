"""What the registry tells the audit log: one record of each change, and none of what only reads or prepares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import ClientSession

from faas.audit import Entry
from faas.auth import Principal, Role
from faas.errors import Unavailable
from faas.metrics import Metrics
from faas.oci.digest import Digest
from faas.state.session import Database
from gateway.credentials import TokenStore
from registry.app import OWN, create_app
from registry.routes import ROUTES
from registry.service import Registry
from tests.support.control import serving

BLOB = b"some bytes"
DIGEST = str(Digest.of(BLOB))
MANIFEST = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class Kept:
    """A trail in memory."""

    entries: list[Entry] = field(default_factory=list)
    is_broken: bool = False

    def check(self) -> None:
        if self.is_broken:
            raise Unavailable("the audit log cannot be written")

    async def record(self, entry: Entry) -> None:
        self.note(entry)

    def note(self, entry: Entry) -> None:
        self.entries.append(entry)

    def taken(self) -> list[tuple[str, str, str, str]]:
        """(action, object, namespace, outcome) of those that came since the last call."""
        found = [(one.action, one.object, one.namespace, one.outcome) for one in self.entries]
        self.entries.clear()
        return found


@dataclass
class Door:
    registry: Registry
    trail: Kept
    tokens: dict[str, str]
    session: ClientSession
    url: str

    async def call(self, verb: str, path: str, body: bytes = b"", by: str = "ci", **headers: str) -> tuple[int, str]:
        """(status, Location)."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if by:
            sent["Authorization"] = f"Bearer {self.tokens[by]}"
        async with self.session.request(verb, self.url + path, data=body, headers=sent) as answer:
            await answer.read()
            return answer.status, answer.headers.get("Location", "")


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    store, trail = TokenStore(database), Kept()
    url = f"sqlite+aiosqlite:///{tmp_path / 'registry.db'}"
    registry = await Registry.open(tmp_path, url, accounts=store, metrics=Metrics("1"))
    registry.trail = trail
    whose = {"ci": Role.DEPLOYER, "boss": Role.ADMIN, "viewer": Role.VIEWER}
    tokens = {name: (await store.create(Principal(name, role)))[1] for name, role in whose.items()}
    try:
        async with serving(create_app(registry)) as address, ClientSession() as session:
            yield Door(registry, trail, tokens, session, address)
    finally:
        await registry.close()
        await database.close()


async def test_a_push_a_mount_and_a_delete_are_one_record_each(door: Door) -> None:
    status, location = await door.call("POST", "/v2/team/app/blobs/uploads/")
    assert (status, door.trail.taken()) == (202, [])  # nobody can pull anything yet
    status, _ = await door.call("PATCH", location, BLOB[:4])
    assert (status, door.trail.taken()) == (202, [])
    status, _ = await door.call("PUT", f"{location}?digest={DIGEST}", BLOB[4:])
    assert (status, door.trail.taken()) == (201, [("blobs.push", f"team/app@{DIGEST}", "team", "done")])
    status, _ = await door.call("POST", f"/v2/web/app/blobs/uploads/?mount={DIGEST}&from=team/app")
    assert (status, door.trail.taken()) == (201, [("blobs.mount", f"web/app@{DIGEST}", "web", "done")])
    status, _ = await door.call("PUT", "/v2/team/app/manifests/v1", MANIFEST, Content_Type=INDEX)
    assert (status, door.trail.taken()) == (201, [("images.push", "team/app:v1", "team", "done")])
    for verb in ("GET", "HEAD"):
        for path in ("manifests/v1", f"blobs/{DIGEST}", "tags/list", f"referrers/{DIGEST}"):
            await door.call(verb, f"/v2/team/app/{path}")
    assert door.trail.taken() == []
    status, _ = await door.call("DELETE", "/v2/team/app/manifests/v1")
    assert (status, door.trail.taken()) == (202, [("images.delete", "team/app:v1", "team", "done")])
    status, _ = await door.call("DELETE", "/v2/team/app/manifests/v1")
    assert (status, door.trail.taken()) == (404, [("images.delete", "team/app:v1", "team", "failed")])


async def test_who_is_refused_is_recorded_and_who_only_asks_how_to_log_in_is_not(door: Door) -> None:
    status, _ = await door.call("PUT", "/v2/team/app/manifests/v1", MANIFEST, "viewer", Content_Type=INDEX)
    assert (status, door.trail.entries[0].by) == (403, "viewer")
    assert door.trail.taken() == [("images.push", "team/app:v1", "team", "refused")]
    status, _ = await door.call("PUT", "/v2/team/app/manifests/v1", MANIFEST, "", Content_Type=INDEX)
    assert (status, door.trail.taken()) == (401, [])


async def test_every_route_of_the_registry_that_changes_something_leaves_one_record(door: Door) -> None:
    """Against a table of what changes, written by hand; a route that is new must be in it, or read."""
    changing = {
        ("uploads", "PUT"), ("manifests", "PUT"), ("manifests", "DELETE"), ("blobs", "DELETE"),
        ("POST", "/v2/_faas/gc"), ("POST", "/v2/_faas/scrub"), ("POST", "/v2/_faas/retention/{pattern:.+}"),
        *((verb, f"/v2/_faas/{noun}/{{pattern:.+}}") for noun in ("policies", "retention")
          for verb in ("PUT", "DELETE")),
        ("PUT", "/v2/_faas/quotas/{namespace:[^/]+}"), ("DELETE", "/v2/_faas/quotas/{namespace:[^/]+}"),
    }  # fmt: skip
    paths = {"uploads": "blobs/uploads/none", "blobs": f"blobs/{DIGEST}", "manifests": "manifests/v1",
             "tags": "tags/list", "referrers": f"referrers/{DIGEST}"}  # fmt: skip
    found = set()
    for route in ROUTES:
        for verb in route.endpoints:
            if verb == "POST":
                continue  # begins an upload, which is nothing yet: see above
            await door.call(verb, f"/v2/team/app/{paths[route.label]}", by="boss")
            if count := len(door.trail.taken()):
                assert count == 1
                found.add((route.label, verb))
    for verb, path, _ in OWN:
        concrete = path.replace("{pattern:.+}", "run").replace("{namespace:[^/]+}", "team")
        await door.call(verb, concrete.replace("{repository:.+}/{reference}", "team/app/v1"), b"{}", "boss")
        if count := len(door.trail.taken()):
            assert count == 1
            found.add((verb, path))
    assert found == changing


async def test_nothing_is_pushed_while_the_log_cannot_be_written(door: Door) -> None:
    door.trail.is_broken = True
    status, _ = await door.call("PUT", "/v2/team/app/manifests/v1", MANIFEST, Content_Type=INDEX)
    assert (status, door.trail.taken()) == (503, [])
    door.trail.is_broken = False
    status, _ = await door.call("GET", "/v2/team/app/manifests/v1")
    assert status == 404
