"""Pulling through: another registry of ours and Debian's docker-registry as upstreams, with real clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faas.oci import media_types
from faas.oci.digest import Digest
from tests.support.containerd import Ctr, containerd
from tests.support.ports import free_port
from tests.support.registry import RegistryProcess, registry_process

NAME = "up.example"


def through(tmp_path: Path, upstream: str, *options: str, auth: str = "none") -> RegistryProcess:
    entry = ",".join([f"{NAME}=http://{upstream}", *options])
    return RegistryProcess(tmp_path / "cache", auth, ("--upstream", entry))


@contextmanager
def started(registry: RegistryProcess) -> Iterator[RegistryProcess]:
    registry.start()
    try:
        yield registry
    finally:
        if registry.process.poll() is None:
            registry.stop()


@contextmanager
def debians(folder: Path) -> Iterator[str]:
    """Debian's docker-registry; its address."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "docker-registry.yml"
    config.write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/images\nhttp:\n  addr: {address}\n"
    )
    with open(folder / "docker-registry.log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        host, _, port = address.rpartition(":")
        eventually(lambda: socket.create_connection((host, int(port)), 1).close() is None)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def eventually(done: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def skopeo(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_tag_is_served_stale_while_its_upstream_is_away_and_moves_when_it_is_back(tmp_path: Path) -> None:
    with registry_process(tmp_path / "upstream") as upstream, started(
        through(tmp_path, upstream.host, "expire=1s")
    ) as cache:  # fmt: skip
        first, raw = upstream.push_image("team/app", "v1", b"first layer")
        path = f"/v2/{NAME}/team/app/manifests/v1"
        fresh = cache.call("GET", path)
        assert (fresh.status, fresh.body, fresh.headers["Docker-Content-Digest"]) == (200, raw, first)
        assert fresh.headers["Content-Type"] == media_types.OCI_MANIFEST
        assert "Warning" not in fresh.headers
        layer = fresh.json()["layers"][0]["digest"]
        assert cache.call("GET", f"/v2/{NAME}/team/app/blobs/{layer}").body == b"first layer"
        upstream.stop()
        time.sleep(1.1)
        stale = cache.call("GET", path)
        assert (stale.status, stale.body) == (200, raw)
        assert stale.headers["Warning"].startswith(f'110 - "{NAME} does not answer')
        assert int(stale.headers["Age"]) >= 1
        assert cache.call("HEAD", path).headers["Docker-Content-Digest"] == first
        assert "Warning" not in cache.call("GET", f"/v2/{NAME}/team/app/manifests/{first}").headers
        assert cache.call("GET", f"/v2/{NAME}/team/app/blobs/{layer}").body == b"first layer"
        assert cache.call("GET", f"/v2/{NAME}/team/app/tags/list").json()["tags"] == ["v1"]
        never = cache.call("GET", f"/v2/{NAME}/team/app/manifests/v9")
        assert (never.status, never.code) == (502, "MANIFEST_UNKNOWN")
        told = f"{NAME} cannot be reached (request id {never.headers['X-Request-Id']})"
        assert never.json()["errors"][0]["message"] == told
        upstream.start()
        second, _ = upstream.push_image("team/app", "v1", b"second layer")
        eventually(lambda: cache.call("HEAD", path).headers["Docker-Content-Digest"] == second)
        assert cache.call("GET", f"/v2/{NAME}/team/app/manifests/{first}").status == 200  # by digest: for ever
        upstream.call("DELETE", "/v2/team/app/manifests/v1")
        eventually(lambda: cache.call("GET", path).status == 404)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RegistryProcess, RegistryProcess]]:
    """(upstream, cache); each test has its own repositories."""
    folder = tmp_path_factory.mktemp("pair")
    with registry_process(folder / "upstream") as upstream, started(through(folder, upstream.host)) as cache:
        yield upstream, cache


def test_a_tag_is_not_asked_for_again_before_it_expires(pair: tuple[RegistryProcess, RegistryProcess]) -> None:
    upstream, cache = pair
    first, _ = upstream.push_image("kept", "v1", b"first")
    path = f"/v2/{NAME}/kept/manifests/v1"
    assert cache.call("GET", path).headers["Docker-Content-Digest"] == first
    upstream.push_image("kept", "v1", b"second")
    assert cache.call("GET", path).headers["Docker-Content-Digest"] == first


def test_only_what_a_manifest_here_names_is_fetched(pair: tuple[RegistryProcess, RegistryProcess]) -> None:
    upstream, cache = pair
    upstream.push_image("named", "v1", b"layer")
    loose = upstream.push_blob("named", b"no manifest names this")
    reply = cache.call("GET", f"/v2/{NAME}/named/blobs/{loose}")
    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
    manifest = cache.call("GET", f"/v2/{NAME}/named/manifests/v1").json()
    layer, config = manifest["layers"][0]["digest"], manifest["config"]["digest"]
    head = cache.call("HEAD", f"/v2/{NAME}/named/blobs/{layer}")
    assert (head.status, head.headers["Content-Length"]) == (200, "5")
    assert head.headers["Docker-Content-Digest"] == layer
    part = cache.call("GET", f"/v2/{NAME}/named/blobs/{layer}", headers={"Range": "bytes=1-3"})
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, b"aye", "bytes 1-3/5")
    assert cache.call("GET", f"/v2/{NAME}/named/blobs/{config}", headers={"Range": "bytes=5000-"}).status == 416


def test_nobody_pushes_to_a_copy_and_the_administrator_may_delete_it(
    pair: tuple[RegistryProcess, RegistryProcess],
) -> None:
    upstream, cache = pair
    digest, raw = upstream.push_image("deleted", "v1")
    assert cache.call("GET", f"/v2/{NAME}/deleted/manifests/v1").status == 200
    headers = {"Content-Type": media_types.OCI_MANIFEST}
    for method, path in (("PUT", "manifests/v1"), ("POST", "blobs/uploads/")):
        reply = cache.call(method, f"/v2/{NAME}/deleted/{path}", raw, headers)
        assert (reply.status, reply.code) == (403, "DENIED")
    assert cache.call("DELETE", f"/v2/{NAME}/deleted/manifests/{digest}").status == 202
    second, _ = upstream.push_image("deleted", "v1", b"another layer")
    reply = cache.call("GET", f"/v2/{NAME}/deleted/manifests/v1")  # asked for anew: the copy is gone
    assert reply.headers["Docker-Content-Digest"] == second


def test_a_source_host_in_the_query_is_the_copy(pair: tuple[RegistryProcess, RegistryProcess]) -> None:
    """As containerd asks a mirror."""
    upstream, cache = pair
    digest, raw = upstream.push_image("library/alpine", "3.19", b"layer")
    cache.push_image("library/alpine", "own")
    reply = cache.call("GET", f"/v2/library/alpine/manifests/3.19?ns={NAME}")
    assert (reply.status, reply.body, reply.headers["OCI-Namespace"]) == (200, raw, NAME)
    layer = reply.json()["layers"][0]["digest"]
    blob = cache.call("GET", f"/v2/library/alpine/blobs/{layer}?ns={NAME}")
    assert (blob.status, blob.body, blob.headers["OCI-Namespace"]) == (200, b"layer", NAME)
    assert cache.call("GET", f"/v2/{NAME}/library/alpine/manifests/{digest}").status == 200  # the same rows
    assert cache.call("GET", "/v2/library/alpine/manifests/3.19").status == 404
    other = cache.call("GET", "/v2/library/alpine/manifests/own?ns=elsewhere.example")
    assert other.status == 200
    assert "OCI-Namespace" not in other.headers


@pytest.mark.root
@pytest.mark.containerd
def test_containerd_has_it_as_a_mirror(pair: tuple[RegistryProcess, RegistryProcess], tmp_path: Path) -> None:
    upstream, cache = pair
    digest, _ = upstream.push_image("library/mirrored", "v1", b"a mirrored layer")
    hosts = tmp_path / "hosts" / NAME
    hosts.mkdir(parents=True)
    mirror = f'[host."http://{cache.host}"]\ncapabilities = ["pull", "resolve"]\n'
    (hosts / "hosts.toml").write_text(f'server = "http://127.0.0.1:1"\n{mirror}')
    with containerd(tmp_path / "containerd") as address:
        ctr = Ctr(address, "mirrored")
        ctr("content", "fetch", "--hosts-dir", hosts.parent, f"{NAME}/library/mirrored:v1")
        assert ctr.has(digest, Digest.of(b"a mirrored layer"))
    tags = cache.call("GET", f"/v2/{NAME}/library/mirrored/tags/list").json()["tags"]
    assert tags == ["v1"]


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_the_configured_login_is_shown_and_no_other(tmp_path: Path, auth: str) -> None:
    with registry_process(tmp_path / "upstream", auth) as upstream:
        digest, _ = upstream.push_image("team/app", "v1", b"x" * 100_000)
        flags = []
        for name, password in (("right.example", upstream.token), ("wrong.example", "wrong"), ("none.example", "")):
            secret = tmp_path / name
            secret.write_text(password)
            secret.chmod(0o600)
            login = f",user=admin,password-file={secret}" if password else ""
            flags += ["--upstream", f"{name}=http://{upstream.host}{login}"]
        with registry_process(tmp_path / "cache", "basic", flags) as cache:
            reply = cache.call("GET", "/v2/right.example/team/app/manifests/v1")
            assert (reply.status, reply.headers["Docker-Content-Digest"]) == (200, digest)
            layer = reply.json()["layers"][0]["digest"]
            assert cache.call("GET", f"/v2/right.example/team/app/blobs/{layer}").body == b"x" * 100_000
            assert cache.call("GET", "/v2/right.example/team/app/tags/list").json()["tags"] == ["v1"]
            assert cache.call("GET", "/v2/right.example/team/app/manifests/v1", login=False).status == 401
            for name in ("wrong.example", "none.example"):
                refused = cache.call("GET", f"/v2/{name}/team/app/manifests/v1")
                assert (refused.status, refused.code) == (403, "DENIED")


@pytest.mark.skopeo
@pytest.mark.parametrize("kind", ["ours", pytest.param("debians", marks=pytest.mark.docker_registry)])
def test_skopeo_pulls_an_index_through_platform_by_platform(tmp_path: Path, kind: str) -> None:
    with registry_process(tmp_path / "source") as source:
        entries = []
        for architecture in ("amd64", "arm64"):
            digest, raw = source.push_image("app", architecture, os.urandom(200_000))
            platform = {"os": "linux", "architecture": architecture}
            entries.append(
                {"mediaType": media_types.OCI_MANIFEST, "digest": digest, "size": len(raw), "platform": platform}
            )
        index = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": entries}).encode()
        assert source.call("PUT", "/v2/app/manifests/v1", index, {"Content-Type": media_types.OCI_INDEX}).status == 201
        with debians(tmp_path) if kind == "debians" else registry_process(tmp_path / "upstream") as upstream:
            host = upstream if isinstance(upstream, str) else upstream.host
            plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
            skopeo("copy", "--all", *plain, f"docker://{source.host}/app:v1", f"docker://{host}/team/app:v1")
            with started(through(tmp_path, host)) as cache:
                image = f"docker://{cache.host}/{NAME}/team/app:v1"
                skopeo("copy", "--all", "--src-tls-verify=false", image, f"oci:{tmp_path}/all:v1")
                one = skopeo("inspect", "--tls-verify=false", "--override-arch", "arm64", image)
                assert json.loads(one)["Architecture"] == "amd64"  # as the test's configs say
                tags = json.loads(skopeo("list-tags", "--tls-verify=false", image.removesuffix(":v1")))
                assert tags["Tags"] == ["v1"]
                there = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{host}/team/app:v1")
                assert skopeo("inspect", "--raw", "--tls-verify=false", image) == there


def test_copies_come_back_whole_after_a_crash_in_the_middle(tmp_path: Path) -> None:
    with registry_process(tmp_path / "upstream") as upstream, started(through(tmp_path, upstream.host)) as cache:
        upstream.push_image("app", "v1", os.urandom(20_000_000))
        layer = cache.call("GET", f"/v2/{NAME}/app/manifests/v1").json()["layers"][0]
        with socket.create_connection(cache.address) as connection:
            connection.sendall(f"GET /v2/{NAME}/app/blobs/{layer['digest']} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert connection.recv(1000)
            cache.stop(signal.SIGKILL)
        cache.start()
        assert len(cache.call("GET", f"/v2/{NAME}/app/blobs/{layer['digest']}").body) == layer["size"]
