"""What an upstream answers is not trusted: where it sends us, what it claims, how much and how slowly it sends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from aiohttp import ClientPayloadError, ClientSession, web

from faas.auth import ANONYMOUS, ROOT, Principal, Role
from faas.errors import StorageFull
from faas.metrics import Metrics
from registry.access import ACTIONS, Caller
from registry.app import create_app
from registry.index import cache
from registry.index.policies import Policy
from registry.index.quotas import Quota
from registry.service import Registry
from registry.source import LocalImageSource
from registry.upstream import client, reading
from registry.upstream import upstream as configured
from tests.support.control import serving
from tests.support.fake_upstream import Canary, FakeUpstream, canary, fake_upstream

NAME = "up.example"
BIG = os.urandom(3 << 20)  # three of the store's batches


@dataclass
class Through:
    """A registry that copies from a fake upstream, both in this process."""

    registry: Registry
    upstream: FakeUpstream
    url: str
    session: ClientSession
    data: Path

    async def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        async with self.session.get(f"{self.url}/v2/{NAME}/{path}", headers=headers) as answer:
            return answer.status, await answer.read()

    async def code(self, path: str) -> tuple[int, str]:
        async with self.session.get(f"{self.url}/v2/{NAME}/{path}") as answer:
            return answer.status, (await answer.json())["errors"][0]["code"]

    def stored(self) -> list[str]:
        """The names of all blobs and upload sessions on the disk."""
        folders = (self.data / "blobs", self.data / "uploads")
        return [file.name for folder in folders for file in folder.rglob("*") if file.is_file()]


@asynccontextmanager
async def pulling_through(tmp_path: Path, options: str = "") -> AsyncIterator[Through]:
    data = tmp_path / "data"
    data.mkdir()
    async with fake_upstream() as upstream:
        registry = await Registry.open(
            data,
            f"sqlite+aiosqlite:///{data}/registry.db",
            accounts=None,
            metrics=Metrics("test"),
            upstreams=configured.parse(f"{NAME}={upstream.url}{options}"),
        )
        try:
            async with serving(create_app(registry)) as url, ClientSession() as session:
                yield Through(registry, upstream, url, session, data)
        finally:
            await registry.close()


def redirecting(location: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": location})

    return answer


@pytest.fixture
async def bird() -> AsyncIterator[Canary]:
    async with canary() as listening:
        yield listening


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "127.1", "0x7f000001", "0.0.0.0", "[::ffff:127.0.0.1]", "[::1]", "[::]",
     "169.254.169.254", "10.255.255.1", "user:pass@127.0.0.1"],
)  # fmt: skip
@pytest.mark.parametrize("what", ["manifest", "blob"])
async def test_no_redirect_leads_to_this_machine_or_its_networks(
    tmp_path: Path, bird: Canary, host: str, what: str
) -> None:
    async with pulling_through(tmp_path) as through:
        upstream = through.upstream
        _, layer = upstream.image("app", "v1", b"layer")
        away = redirecting(f"http://{host}:{bird.port}/latest/meta-data")
        if what == "blob":
            assert (await through.get("app/manifests/v1"))[0] == 200
            upstream.special[f"app/blobs/{layer}"] = away
            assert await through.code(f"app/blobs/{layer}") == (502, "BLOB_UNKNOWN")
        else:
            upstream.special["app/manifests/v1"] = away
            assert await through.code("app/manifests/v1") == (502, "MANIFEST_UNKNOWN")
        assert bird.connections == 0
        assert through.stored() == []


async def test_redirects_end(tmp_path: Path) -> None:
    async with pulling_through(tmp_path) as through:
        _, layer = through.upstream.image("app", "v1", b"layer")
        await through.get("app/manifests/v1")
        blob = f"app/blobs/{layer}"
        through.upstream.special[blob] = redirecting(f"/v2/{blob}")
        assert await through.code(blob) == (502, "BLOB_UNKNOWN")
        assert through.upstream.count("GET", blob) == 1 + client.REDIRECTS
        through.upstream.special[blob] = redirecting("/a")
        through.upstream.special["/a"] = redirecting("/b")
        through.upstream.special["/b"] = redirecting(f"/v2/elsewhere/{layer}")
        assert await through.get(blob) == (200, b"layer")


async def test_a_login_stays_with_the_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pa55word")
    secret.chmod(0o600)
    monkeypatch.setattr(client, "public_socket", lambda info: socket.socket(*info[:3]))  # the CDN is on loopback here
    async with fake_upstream() as cdn, pulling_through(tmp_path, f",user=u,password-file={secret}") as through:
        upstream = through.upstream
        _, layer = upstream.image("app", "v1", b"layer")

        async def asks(request: web.Request) -> web.StreamResponse:
            if not request.headers.get("Authorization", "").startswith("Basic "):
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            if request.path.endswith(layer):
                return web.Response(status=307, headers={"Location": f"{cdn.url}/v2/cdn/blobs/{layer}?sig=a%2Fb"})
            return web.Response(
                body=upstream.manifests["app/manifests/v1"], content_type="application/vnd.oci.image.manifest.v1+json"
            )

        upstream.everywhere = asks
        cdn.blob(b"layer")
        assert (await through.get("app/manifests/v1"))[0] == 200
        assert await through.get(f"app/blobs/{layer}") == (200, b"layer")
        assert cdn.seen == [("GET", f"cdn/blobs/{layer}", "")]


async def test_no_realm_elsewhere_gets_the_password(tmp_path: Path, bird: Canary) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pa55word")
    secret.chmod(0o600)
    async with pulling_through(tmp_path, f",user=u,password-file={secret}") as through:
        challenge = ""

        async def asks(request: web.Request) -> web.StreamResponse:
            if request.path == "/token":
                return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{bird.port}/token"})
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})

        through.upstream.everywhere = asks
        own = through.upstream.url
        for realm in (
            f"http://127.0.0.1:{bird.port}/token",
            f"{own.replace('http://', 'http://u:p@')}/token",
            f"{own.replace('127.0.0.1', '127.0.0.1.example')}/token",
            "/token",
            "",
            f"{own}/token",  # its own, which sends us away
        ):
            challenge = f'Bearer realm="{realm}",service="s"'
            assert (await through.code("app/manifests/v1"))[0] == 502
        assert bird.connections == 0
        shown = [(path, login) for _, path, login in through.upstream.seen if login]
        assert [path for path, _ in shown] == ["/token"]


async def test_a_configured_auth_host_gives_tokens(tmp_path: Path) -> None:
    async with fake_upstream() as issuer, pulling_through(tmp_path, f",auth={issuer.url}") as through:
        digest, _ = through.upstream.image("library/app", "v1", b"layer")

        async def token(request: web.Request) -> web.StreamResponse:
            assert dict(request.query) == {"scope": "repository:library/app:pull", "service": "hub"}
            return web.json_response({"token": "t0ken", "expires_in": 300})

        async def asks(request: web.Request) -> web.StreamResponse:
            if request.headers.get("Authorization") != "Bearer t0ken":
                words = f'Bearer realm="{issuer.url}/token",service="hub",scope="repository:everything:*"'
                return web.Response(status=401, headers={"WWW-Authenticate": words})
            raw = through.upstream.manifests["library/app/manifests/v1"]
            return web.Response(body=raw, content_type="application/vnd.oci.image.manifest.v1+json")

        issuer.everywhere, through.upstream.everywhere = token, asks
        assert (await through.get("library/app/manifests/v1"))[0] == 200
        assert (await through.get(f"library/app/manifests/{digest}"))[0] == 200
        assert issuer.count("GET", "/token") == 1


@pytest.mark.parametrize("answer", [b"", b"not json", b"[]", b'{"token": 1}', b'{"token": "a\\r\\nb"}', b"x" * 100_000])
async def test_what_is_no_token_is_none(tmp_path: Path, answer: bytes) -> None:
    async with pulling_through(tmp_path) as through:

        async def asks(request: web.Request) -> web.StreamResponse:
            if request.path == "/token":
                return web.Response(body=answer)
            words = f'Bearer realm="{through.upstream.url}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": words})

        through.upstream.everywhere = asks
        assert (await through.code("app/manifests/v1"))[0] == 502


@pytest.mark.parametrize(
    "raw",
    [b"", b"<html>log in to the wireless network</html>", b"[" * 100_000, b'{"schemaVersion": 2}', b" " * (5 << 20)],
    ids=["empty", "a portal", "deep", "no manifest", "endless"],
)  # fmt: skip
async def test_what_is_no_manifest_is_not_kept_and_a_good_copy_stays(tmp_path: Path, raw: bytes) -> None:
    async with pulling_through(tmp_path, ",expire=0s") as through:
        through.upstream.image("app", "v1", b"layer")
        good = await through.get("app/manifests/v1")

        async def bad(request: web.Request) -> web.StreamResponse:
            return web.Response(body=raw, content_type="application/vnd.oci.image.manifest.v1+json")

        through.upstream.everywhere = bad
        assert await through.code("app/manifests/other") == (502, "MANIFEST_UNKNOWN")
        assert await through.get("app/manifests/v1") == good


async def test_another_manifest_than_the_digest_says_is_refused(tmp_path: Path) -> None:
    async with pulling_through(tmp_path) as through:
        first, _ = through.upstream.image("app", "v1", b"first")
        through.upstream.image("app", "v1", b"second")
        path = f"app/manifests/{first}"
        through.upstream.manifests[path] = through.upstream.manifests["app/manifests/v1"]
        assert await through.code(path) == (502, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("size", [100_000, len(BIG)], ids=["small", "big"])
async def test_another_blob_than_the_digest_says_is_cut_off_and_not_stored(tmp_path: Path, size: int) -> None:
    async with pulling_through(tmp_path) as through:
        _, layer = through.upstream.image("app", "v1", BIG[:size])
        await through.get("app/manifests/v1")
        through.upstream.blobs[layer] = BIG[: size - 1] + bytes([BIG[size - 1] ^ 1])
        blob = f"app/blobs/{layer}"
        if size < 1 << 20:  # nothing had gone out yet
            assert await through.code(blob) == (502, "BLOB_UNKNOWN")
        else:
            with pytest.raises(ClientPayloadError):
                await through.get(blob)
        assert through.stored() == []
        through.upstream.blobs[layer] = BIG[:size]
        assert await through.get(blob) == (200, BIG[:size])


@pytest.mark.parametrize("kind", ["endless", "cut", "short", "long"])
async def test_a_body_of_another_length_is_cut_off_and_not_stored(tmp_path: Path, kind: str) -> None:
    async with pulling_through(tmp_path) as through:
        _, layer = through.upstream.image("app", "v1", BIG)
        await through.get("app/manifests/v1")
        sent = 0

        async def body(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse()
            if kind in ("cut", "long"):
                response.content_length = len(BIG) + (kind == "long")
            await response.prepare(request)
            if kind == "endless":
                while True:
                    await response.write(BIG)
                    sent += len(BIG)
            await response.write(BIG[: 2 << 20])
            if kind == "cut" and request.transport is not None:
                request.transport.close()
            return response

        through.upstream.special[f"app/blobs/{layer}"] = body
        if kind == "long":
            assert await through.code(f"app/blobs/{layer}") == (502, "BLOB_UNKNOWN")
        else:
            with pytest.raises(ClientPayloadError):
                await through.get(f"app/blobs/{layer}")
        assert sent < 20 << 20
        assert through.stored() == []


async def test_a_trickle_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PACE_SECONDS", 0.3)
    async with pulling_through(tmp_path) as through:
        _, layer = through.upstream.image("app", "v1", BIG)
        await through.get("app/manifests/v1")

        async def trickle(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"x")
                await asyncio.sleep(0.05)

        through.upstream.special[f"app/blobs/{layer}"] = trickle
        began = time.monotonic()
        assert await through.code(f"app/blobs/{layer}") == (504, "BLOB_UNKNOWN")
        assert time.monotonic() - began < 30
        assert through.stored() == []


async def test_silence_is_given_up_and_the_old_copy_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pulling_through(tmp_path, ",expire=0s") as through:
        through.upstream.image("app", "v1", b"layer")
        good = await through.get("app/manifests/v1")
        monkeypatch.setattr(client, "ANSWER_SECONDS", 0.3)
        silent = asyncio.Event()

        async def wait(request: web.Request) -> web.StreamResponse:
            await silent.wait()
            return web.Response()

        through.upstream.everywhere = wait
        assert await through.get("app/manifests/v1") == good
        assert await through.code("app/manifests/v2") == (504, "MANIFEST_UNKNOWN")
        silent.set()


async def test_an_upstream_that_asks_for_patience_gets_it(tmp_path: Path) -> None:
    async with pulling_through(tmp_path, ",expire=0s") as through:
        through.upstream.image("app", "v1", b"layer")
        good = await through.get("app/manifests/v1")

        async def busy(request: web.Request) -> web.StreamResponse:
            return web.Response(status=429, headers={"Retry-After": "30"})

        through.upstream.everywhere = busy
        asked = len(through.upstream.seen)
        assert await through.get("app/manifests/v1") == good
        async with through.session.get(f"{through.url}/v2/{NAME}/app/manifests/v2") as answer:
            assert answer.status == 429
            assert 1 <= int(answer.headers["Retry-After"]) <= 30
            assert (await answer.json())["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert len(through.upstream.seen) == asked + 1


async def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pulling_through(tmp_path) as through:
        _, layer = through.upstream.image("app", "v1", BIG)
        await through.get("app/manifests/v1")

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            assert await through.code(f"app/blobs/{layer}") == (507, "DENIED")
        assert through.stored() == []
        assert await through.get(f"app/blobs/{layer}") == (200, BIG)


async def test_a_copy_is_served_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database's disk is full, and the tag is to be asked for again."""
    async with pulling_through(tmp_path, ",expire=0s") as through:
        through.upstream.image("app", "v1", b"layer")
        good = await through.get("app/manifests/v1")

        def full(*_: object) -> NoReturn:
            raise StorageFull("the database's disk is full")

        monkeypatch.setattr(cache, "point", full)
        assert await through.get("app/manifests/v1") == good


async def test_a_quota_holds_for_copies_too(tmp_path: Path) -> None:
    async with pulling_through(tmp_path) as through:
        _, layer = through.upstream.image("app", "v1", BIG)
        await through.registry.index.quotas.put(NAME, Quota(physical_bytes=1 << 20))
        assert (await through.get("app/manifests/v1"))[0] == 200
        assert await through.code(f"app/blobs/{layer}") == (403, "DENIED")
        assert through.upstream.count("GET", layer) == 0
        await through.registry.index.quotas.put(NAME, Quota(physical_bytes=1))
        assert await through.code("app/manifests/v2") == (404, "MANIFEST_UNKNOWN")
        through.upstream.image("app", "v2", b"layer")
        assert await through.code("app/manifests/v2") == (403, "DENIED")


async def test_a_hundred_clients_are_one_fetch_and_read_along_while_it_comes(tmp_path: Path) -> None:
    async with pulling_through(tmp_path) as through:
        _, layer = through.upstream.image("app", "v1", BIG)
        going_on = asyncio.Event()

        async def halting(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            response.content_length = len(BIG)
            await response.prepare(request)
            await response.write(BIG[: 2 << 20])
            await going_on.wait()
            await response.write(BIG[2 << 20 :])
            return response

        through.upstream.special[f"app/blobs/{layer}"] = halting
        manifests = await asyncio.gather(*(through.get("app/manifests/v1") for _ in range(100)))
        assert {status for status, _ in manifests} == {200}
        assert through.upstream.count("GET", "manifests/v1") == 1
        reading_along = 0

        async def pull(number: int) -> str:
            nonlocal reading_along
            headers = {"Range": f"bytes={number}-"} if number % 2 else {}
            async with through.session.get(f"{through.url}/v2/{NAME}/app/blobs/{layer}", headers=headers) as answer:
                got = await answer.content.readexactly(1 << 19)
                reading_along += 1
                if reading_along == 100:
                    going_on.set()
                got += await answer.read()
            start = number if number % 2 else 0
            assert got == BIG[start:]
            return hashlib.sha256(got).hexdigest()

        async with ClientSession() as unlimited, asyncio.timeout(60):
            through.session = unlimited
            await asyncio.gather(*(pull(number) for number in range(100)))
        assert through.upstream.count("GET", layer) == 1
        assert through.stored() == [layer.partition(":")[2]]


async def test_a_client_that_goes_away_does_not_end_the_fetch(tmp_path: Path) -> None:
    async with pulling_through(tmp_path) as through:
        _, layer = through.upstream.image("app", "v1", BIG)
        await through.get("app/manifests/v1")
        going_on = asyncio.Event()

        async def halting(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(BIG[: 2 << 20])
            await going_on.wait()
            await response.write(BIG[2 << 20 :])
            return response

        through.upstream.special[f"app/blobs/{layer}"] = halting
        async with through.session.get(f"{through.url}/v2/{NAME}/app/blobs/{layer}") as answer:
            await answer.content.readexactly(1000)
            answer.close()
        going_on.set()
        async with asyncio.timeout(10):
            while layer.partition(":")[2] not in through.stored():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.02)
        assert await through.get(f"app/blobs/{layer}") == (200, BIG)
        assert through.upstream.count("GET", layer) == 1


async def test_what_two_copied_repositories_share_comes_once_and_what_others_own_is_not_given_away(
    tmp_path: Path,
) -> None:
    async with pulling_through(tmp_path) as through:
        _, layer = through.upstream.image("first", "v1", b"shared")
        through.upstream.image("second", "v1", b"shared")
        for name in ("first", "second"):
            await through.get(f"{name}/manifests/v1")
            assert await through.get(f"{name}/blobs/{layer}") == (200, b"shared")
        assert through.upstream.count("GET", layer) == 1
        # A tenant's own blob, whose digest the upstream knows and names
        secret = b"a tenant's own"
        digest = "sha256:" + hashlib.sha256(secret).hexdigest()
        async with through.session.post(
            f"{through.url}/v2/tenant/app/blobs/uploads/?digest={digest}", data=secret
        ) as answer:
            assert answer.status == 201
        through.upstream.image("third", "v1", secret)
        del through.upstream.blobs[digest]
        await through.get("third/manifests/v1")
        assert await through.code(f"third/blobs/{digest}") == (404, "BLOB_UNKNOWN")


async def test_copies_that_nobody_wants_any_more_go(tmp_path: Path) -> None:
    async with pulling_through(tmp_path, ",expire=1h") as through:
        _, layer = through.upstream.image("app", "v1", b"layer")
        await through.get("app/manifests/v1")
        await through.get(f"app/blobs/{layer}")
        await aged(through.registry, days=30)
        await through.registry.collect()
        assert through.stored() != []
        await aged(through.registry, days=1)
        await through.registry.collect()
        assert through.stored() == []
        assert (await through.get("app/manifests/v1"))[0] == 200


async def aged(registry: Registry, days: int) -> None:
    """As if so much time had passed."""
    times = {
        "tags": ("updated_at", "expires_at"),
        "manifests": ("created_at", "untagged_at", "leased_until"),
        "repository_blobs": ("created_at", "leased_until"),
    }
    async with registry.index.database.write() as tx:
        for table, columns in times.items():
            moved = ", ".join(f"{column} = {column} - {days * 86_400}" for column in columns)
            await tx.exec_driver_sql(f"UPDATE {table} SET {moved}")


async def test_copies_are_for_all_who_may_pull_and_nobody_to_push(tmp_path: Path) -> None:
    async with pulling_through(tmp_path) as through:
        copy = f"{NAME}/app"

        def may(principal: Principal, scopes: frozenset[tuple[str, str]] | None = None) -> list[str]:
            caller = Caller(principal, scopes)
            return [
                action
                for action, permission in ACTIONS.items()
                if through.registry.access.may(caller, permission, copy)
            ]

        assert may(Principal("vic", Role.VIEWER, "team")) == ["pull"]
        assert may(Principal("dora", Role.DEPLOYER, NAME)) == ["pull"]
        assert may(Principal("narrow", Role.DEPLOYER, "team", repositories=("team/app",))) == []
        assert may(Principal("wider", Role.DEPLOYER, repositories=(f"{NAME}/*",))) == ["pull"]
        assert may(Principal("alf", Role.ADMIN, NAME)) == ["pull"]
        assert may(ROOT) == ["pull", "delete"]
        assert may(ROOT, frozenset({(copy, "delete"), (copy, "push")})) == ["delete"]
        assert may(ROOT, frozenset({("team/app", "pull")})) == []
        assert may(Principal("cal", Role.CALLER, "team")) == []
        assert may(ANONYMOUS) == []
        await through.registry.policies.put(f"{NAME}/*", Policy(public=True))
        assert may(ANONYMOUS) == ["pull"]


async def test_a_deploy_gets_what_is_missing(tmp_path: Path) -> None:
    """As the worker asks: the manifest by tag, then each blob as a file."""
    async with pulling_through(tmp_path) as through:
        digest, layer = through.upstream.image("app", "v1", b"layer")
        source = LocalImageSource(through.registry)
        manifest = await source.manifest(f"{NAME}/app:v1", "amd64")
        assert str(manifest.digest) == digest
        for descriptor in manifest.blobs:
            with await source.open_blob(f"{NAME}/app", descriptor) as blob:
                assert len(blob.read()) == descriptor.size
        assert layer.partition(":")[2] in through.stored()
