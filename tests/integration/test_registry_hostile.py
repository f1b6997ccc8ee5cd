"""Tenants, clients and upstreams that mean harm: what one of them must not learn, take, or keep from the others."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import ClientSession

from faas.auth import ANONYMOUS, Permission, Principal, Role
from faas.errors import ImageUnusable, NotFound, Throttled, Unauthenticated, Unavailable
from faas.metrics import Metrics
from faas.oci import media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import Manifest
from faas.state.session import Database
from gateway.credentials import TokenStore
from registry import answers, gc
from registry.access import STRANGER
from registry.app import create_app
from registry.by_pattern import PATTERNS
from registry.index.policies import Policy
from registry.service import Registry
from registry.source import LocalImageSource
from registry.upstream.upstream import parse
from tests.support.commands import run
from tests.support.control import serving
from tests.support.fake_upstream import fake_upstream
from tests.support.raw_http import talk
from tests.support.registry import ROOT, RegistryProcess, Reply, registry_process

CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
ABSENT = str(Digest.of(b"nobody has this"))
OCI = {"Content-Type": media_types.OCI_MANIFEST}


def manifest_of(*layers: str, **more: object) -> bytes:
    parts = [Descriptor(media_types.OCI_LAYER, Digest.parse(digest), 6).to_json() for digest in layers]
    config = Descriptor(media_types.OCI_CONFIG, Digest.of(CONFIG), len(CONFIG)).to_json()
    value = {"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": config, "layers": parts, **more}
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass
class Tenants:
    """A registry that runs alone, with a deployer and an administrator in each of the namespaces `a` and `b`."""

    registry: RegistryProcess

    def user(self, *words: str, password: str = "") -> None:
        run(sys.executable, "-m", "registry", "user", *words, "--data", self.registry.data, stdin=password, cwd=ROOT)

    def add(self, name: str, role: str, namespace: str) -> None:
        self.user("add", name, "--role", role, "--namespace", namespace, password=f"password of {name}")

    def call(self, method: str, path: str, who: str, body: bytes | None = None, **headers: str) -> Reply:
        pair = base64.b64encode(f"{who}:password of {who}".encode()).decode()
        return self.registry.call(method, path, body, {"Authorization": f"Basic {pair}", **headers}, login=False)

    def token(self, who: str, scope: str) -> dict[str, str]:
        reply = self.call("GET", f"/token?scope={scope}", who)
        assert reply.status == 200, reply.body
        return {"Authorization": "Bearer " + reply.json()["token"]}

    def bearing(self, token: dict[str, str], method: str, path: str) -> Reply:
        return self.registry.call(method, path, headers=token, login=False)


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    data = tmp_path_factory.mktemp("tenants")
    made = Tenants(RegistryProcess(data, "token"))
    for namespace in ("a", "b"):
        made.add(f"dev-{namespace}", "deployer", namespace)
        made.add(f"adm-{namespace}", "admin", namespace)
    with registry_process(data, "token") as made.registry:
        made.registry.push_blob("b/app", CONFIG)
        yield made


# What others have


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
def test_an_upload_session_is_its_repositorys_alone(tenants: Tenants, method: str) -> None:
    begun = tenants.call("POST", "/v2/a/app/blobs/uploads/", "dev-a").headers["Location"]
    assert tenants.call("PATCH", begun, "dev-a", b"secret").status == 202
    query = f"?digest={Digest.of(b'secret')}" if method == "PUT" else ""
    for who, other in (("dev-b", "b/app"), ("dev-a", "a/other")):
        reply = tenants.call(method, begun.replace("a/app", other) + query, who, b"x" if method == "PATCH" else None)
        assert (reply.status, reply.code if reply.body else "") in ((404, "BLOB_UPLOAD_UNKNOWN"), (404, ""))
    assert tenants.call(method, begun.replace("a/app", "a/app") + query, "dev-b").status == 403
    assert tenants.call("PUT", f"{begun}?digest={Digest.of(b'secret')}", "dev-a").status == 201


def test_after_a_restart_a_session_is_still_its_repositorys(tmp_path: Path) -> None:
    with registry_process(tmp_path) as registry:
        begun = registry.call("POST", "/v2/a/app/blobs/uploads/").headers["Location"]
        assert registry.call("PATCH", begun, b"secret").status == 202
    with registry_process(tmp_path) as registry:
        end = f"?digest={Digest.of(b'secret')}"
        assert registry.call("PUT", begun.replace("a/app", "b/app") + end).code == "BLOB_UPLOAD_UNKNOWN"
        assert registry.call("PUT", begun + end).status == 201


def test_which_blob_is_missing_does_not_tell_what_others_have(tenants: Tenants) -> None:
    theirs = tenants.registry.push_blob("a/app", b"secret")
    for wanted in (theirs, str(Digest.of(b"another that nobody has"))):
        for layers in ((wanted, ABSENT), (ABSENT, wanted)):
            reply = tenants.call("PUT", "/v2/b/app/manifests/v1", "dev-b", manifest_of(*layers), **OCI)
            assert (reply.status, reply.json()["errors"][0]["detail"]) == (400, layers[0])


def test_a_sparse_image_does_not_tell_the_size_of_what_others_have(tenants: Tenants) -> None:
    theirs = tenants.registry.push_blob("a/app", b"secret")
    assert tenants.call("PUT", "/v2/_faas/policies/b/sparse", "adm-b", b'{"sparse": true}').status == 204
    tenants.registry.push_blob("b/sparse", CONFIG)
    sizes = set()
    for layer in (theirs, ABSENT):
        raw = manifest_of(layer)
        assert tenants.call("PUT", "/v2/b/sparse/manifests/v1", "dev-b", raw, **OCI).status == 201
        sizes.add(tenants.call("GET", "/v2/_faas/images/b/sparse/v1", "dev-b").json()["bytes"])
        assert tenants.call("GET", f"/v2/b/sparse/blobs/{layer}", "dev-b").code == "BLOB_UNKNOWN"
    assert sizes == {len(manifest_of(theirs)) + len(CONFIG)}


async def test_a_sparse_image_is_not_deployed_with_what_others_have(tmp_path: Path) -> None:
    async with opened(tmp_path) as registry:
        source, theirs = LocalImageSource(registry), Digest.of(b"secret")
        await pushed(registry, "a/app", b"secret")
        await pushed(registry, "b/app", CONFIG)
        manifest = Manifest.parse(manifest_of(str(theirs)))
        assert await registry.index.put_manifest("b/app", manifest, ["v1"], sparse=True) is None
        with pytest.raises(ImageUnusable, match=re.escape(str(theirs))):
            await source.manifest("b/app:v1", "amd64")
        with pytest.raises(NotFound):
            await source.open_blob("b/app", manifest.layers[0])
        (await source.open_blob("a/app", manifest.layers[0])).close()
        await pushed(registry, "b/app", b"secret")
        assert await source.manifest("b/app:v1", "amd64") == manifest


@asynccontextmanager
async def opened(data: Path, upstreams: str = "", accounts: TokenStore | None = None) -> AsyncIterator[Registry]:
    url, known = f"sqlite+aiosqlite:///{data}/registry.db", parse(upstreams)
    registry = await Registry.open(data, url, accounts=accounts, metrics=Metrics("1"), upstreams=known)
    try:
        yield registry
    finally:
        await registry.close()


async def pushed(registry: Registry, repository: str, data: bytes) -> None:
    async def once() -> AsyncIterator[bytes]:
        yield data

    upload = await registry.blobs.begin(repository)
    async with upload.lock:
        await upload.append(once())
        size = await upload.commit(Digest.of(data))
        await registry.index.add_blob(repository, Digest.of(data), size)
        upload.end()


# Who may what


async def test_what_is_public_everywhere_opens_no_way_to_upstreams(tmp_path: Path) -> None:
    """Strangers would fetch and store here whatever they like."""
    async with fake_upstream() as upstream, opened(tmp_path, f"up.example={upstream.url}") as registry:
        copy = "up.example/app"
        for public, opens in (("*", False), ("up*", False), ("*/app", False), ("up.example/*", True)):
            await registry.policies.put(public, Policy(public=True))
            assert registry.access.may(STRANGER, Permission.PULL, copy) == opens, public
            assert registry.access.may(STRANGER, Permission.PULL, "up.exampled/app") == (public != "up.example/*")
            await registry.policies.remove(public)


async def test_a_namespace_called_like_an_upstream_does_not_administer_its_copies(tmp_path: Path) -> None:
    """An upstream with a port: its colon is a `-` here, and that is a name like any other."""
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    store = TokenStore(database)
    async with opened(tmp_path, "localhost:5001=http://localhost:5001", store) as registry:
        _, token = await store.create(Principal("alf", Role.ADMIN, "localhost-5001"))
        async with (
            serving(create_app(registry)) as url,
            ClientSession(url, headers={"Authorization": f"Bearer {token}"}) as session,
        ):
            for noun, body in (("policies", b'{"public": true}'), ("retention", b'{"keep_last": 1}')):
                async with session.put(f"/v2/_faas/{noun}/localhost-5001/*", data=body) as answer:
                    assert answer.status == 403, noun
    await database.close()


async def test_a_revoked_token_takes_the_short_lived_ones_with_it(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'faas.db'}")
    store = TokenStore(database)
    async with opened(tmp_path, accounts=store) as registry:
        who, scopes = Principal("dora", Role.DEPLOYER, "team"), frozenset({("team/app", "push"), ("free/app", "pull")})
        _, shown = await store.create(who)
        caller = await registry.access.caller(shown, None, None)
        token = registry.access.signer.issue(caller, scopes)
        assert (await registry.access.caller(token, None, None)).may(Permission.PUSH, "team/app")
        await store.revoke("dora")
        with pytest.raises(Unauthenticated):
            await registry.access.caller(token, None, None)
        await store.create(Principal("dora", Role.VIEWER, "free"))  # another one of that name
        again = await registry.access.caller(token, None, None)
        assert not again.may(Permission.PUSH, "team/app")
        stranger = await registry.access.caller(registry.access.signer.issue(STRANGER, scopes), None, None)
        assert stranger.principal is ANONYMOUS
    await database.close()


def test_a_user_who_may_less_does_at_once(tenants: Tenants) -> None:
    tenants.add("leaver", "deployer", "a")
    token = tenants.token("leaver", "repository:a/app:pull,push")
    assert tenants.bearing(token, "POST", "/v2/a/app/blobs/uploads/").status == 202
    tenants.add("leaver", "viewer", "a")
    time.sleep(1.1)  # as often as the file is looked at
    assert tenants.bearing(token, "POST", "/v2/a/app/blobs/uploads/").status == 401
    tenants.user("rm", "leaver")
    time.sleep(1.1)
    assert tenants.bearing(token, "GET", "/v2/a/app/tags/list").status == 401


# What clients write comes back in headers


@pytest.mark.parametrize("source", ["b/x%22,realm=%22http://evil/", "b/x%0d%0aX-Evil:%201", "b/%C3%A9", "b/X"])
def test_what_is_no_repository_is_not_repeated_in_a_challenge(tenants: Tenants, source: str) -> None:
    token = tenants.token("dev-b", "repository:b/app:pull,push")
    reply = tenants.bearing(token, "POST", f"/v2/b/app/blobs/uploads/?mount={ABSENT}&from={source}")
    assert reply.status == 202
    assert "evil" not in str(reply.headers).lower()


@pytest.mark.parametrize(
    "head",
    ['/v2/ HTTP/1.1\r\nHost: x",service="y', "/v2/ HTTP/1.1\r\nHost: a b", "/v2/ HTTP/1.1\r\nHost: a/@evil",
     "/v2/ HTTP/1.1\r\nHost: a\r\nHost: evil", "http://evil/v2/ HTTP/1.1\r\nHost: a", "/v2/ HTTP/1.1\r\nX: y"],
)  # fmt: skip
async def test_a_doubtful_host_is_refused(tenants: Tenants, head: str) -> None:
    """Docker shows its password to the host in the challenge."""
    answer = await talk(tenants.registry.address[1], f"GET {head}\r\n\r\n".encode())
    assert answer[9:12] == b"400"
    assert b"www-authenticate" not in answer.lower()


@pytest.mark.parametrize(("said", "scheme"), [("https", "https"), ("http", "http"), ('https"', "http"), (None, "http")])
def test_behind_a_proxy_with_tls_passwords_are_asked_for_over_tls(
    tenants: Tenants, said: str | None, scheme: str
) -> None:
    headers = {"X-Forwarded-Proto": said} if said else {}
    asked = tenants.registry.call("GET", "/v2/", headers=headers, login=False).headers["WWW-Authenticate"]
    assert asked.startswith(f'Bearer realm="{scheme}://{tenants.registry.host}/token"')


# What everybody shares: memory, the loop, the writer


def test_patterns_of_a_namespace_are_so_many(tenants: Tenants) -> None:
    """Each request compares with all of them."""
    for noun, body in (("policies", b"{}"), ("retention", b'{"keep_last": 3}')):
        replies = [
            tenants.call("PUT", f"/v2/_faas/{noun}/a/{number}*", "adm-a", body).status for number in range(PATTERNS + 1)
        ]
        assert replies == [204] * PATTERNS + [403], noun
        assert tenants.call("PUT", f"/v2/_faas/{noun}/a/0*", "adm-a", body).status == 204  # one that is there
        assert tenants.call("PUT", f"/v2/_faas/{noun}/b/0*", "adm-b", body).status == 204


async def test_one_namespaces_collections_have_a_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preview keeps every writer waiting while it runs."""
    turn = gc.CollectionTurn()
    async with turn.of(None):
        with pytest.raises(Throttled):
            async with turn.of("a"):
                pytest.fail("beside another one")
    for _ in range(2):  # short ones may follow each other
        async with turn.of("a"):
            pass
    monkeypatch.setattr(gc, "SHORT_SECONDS", 0.0)
    monkeypatch.setattr(gc, "NAMESPACE_SECONDS", 0.05)
    now = time.monotonic()
    monkeypatch.setattr(gc, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))

    async def too_long() -> None:
        nonlocal now
        now += 0.05
        await asyncio.sleep(5)

    with pytest.raises(Unavailable):
        async with turn.of("a"):
            await too_long()
    with pytest.raises(Throttled) as refused:
        async with turn.of("b"):
            pytest.fail("right after a long one")
    assert refused.value.retry_after == 1  # nine times the 50 ms, in whole seconds
    async with turn.of(None):  # the regular one waits for nobody's rest
        pass


def test_large_answers_to_slow_readers_are_so_many(tenants: Tenants) -> None:
    raw = manifest_of(annotations={"x": "y" * ((4 << 20) - 1000)})
    put = tenants.call("PUT", "/v2/b/app/manifests/large", "dev-b", raw, **OCI)
    assert put.status == 201
    token = tenants.token("dev-b", "repository:b/app:pull")["Authorization"]
    most = answers.LARGE_BYTES // len(raw)
    asking = f"GET /v2/b/app/manifests/large HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\n\r\n".encode()
    with contextlib.ExitStack() as slow:
        for _ in range(most):
            reader = slow.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(tenants.registry.address)
            reader.sendall(asking)
            assert reader.recv(12) == b"HTTP/1.1 200"
        refused = tenants.call("GET", "/v2/b/app/manifests/large", "dev-b")
        assert (refused.status, refused.code) == (429, "TOOMANYREQUESTS")
        assert "Retry-After" in refused.headers
        assert tenants.call("HEAD", "/v2/b/app/manifests/large", "dev-b").status == 200
    deadline = time.monotonic() + 10
    while (reply := tenants.call("GET", "/v2/b/app/manifests/large", "dev-b")).status != 200:
        assert time.monotonic() < deadline
    assert reply.body == raw


def test_a_manifest_of_very_many_values_is_refused(tenants: Tenants) -> None:
    """While they are read nothing else runs."""
    for more in ({"x": [[]] * 200_001}, {"annotations": {format(number, "x"): "" for number in range(200_001)}}):
        raw = manifest_of(**more)
        assert len(raw) < 4 << 20
        assert tenants.call("PUT", "/v2/b/app/manifests/v1", "dev-b", raw, **OCI).code == "MANIFEST_INVALID"


def test_referrers_give_annotations_as_they_were_pushed(tenants: Tenants) -> None:
    """They are not read in between, whatever stands in them."""
    subject = Descriptor(media_types.OCI_MANIFEST, Digest.of(os.urandom(9)), 9).to_json()
    odd = {"é": '"},{"digest":"x"}]', "\u0000\u2028": "\\u0041\U0001f600\n", "": ""}
    raw = manifest_of(subject=subject, annotations=odd, artifactType='a"b\u00e9')
    assert tenants.call("PUT", "/v2/b/app/manifests/odd", "dev-b", raw, **OCI).status == 201
    reply = tenants.call("GET", f"/v2/b/app/referrers/{subject['digest']}", "dev-b")
    (entry,) = reply.json()["manifests"]
    assert (entry["annotations"], entry["artifactType"]) == (odd, 'a"b\u00e9')
