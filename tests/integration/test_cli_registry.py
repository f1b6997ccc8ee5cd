"""`faas push` and `faas login` against the real registry, running alone; the control API beside it is a fake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faas.build.image import ImagePush
from faas.errors import NotFound
from faas.oci.client import RegistryClient
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig, Manifest
from faas.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER
from faas.oci.platform import architecture
from tests.support.cli import CommandLine
from tests.support.fake_api import HELLO, INFO, TOKEN, FakeApi, Reply, Seen


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """host:port of a registry whose administrator's token is the fake API's."""
    data = tmp_path / "registry"
    data.mkdir()
    (data / "admin-token").write_text(TOKEN)
    process = subprocess.Popen(
        [sys.executable, "-m", "registry", "--data", str(data), "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("FAAS_")},
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip().rpartition(" ")[2]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        process.stdout.close()


@pytest.fixture
def faas(
    tmp_path: Path, registry: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CommandLine]:
    with FakeApi() as api:
        revisions = iter(range(1, 10))

        def deployed(seen: Seen) -> Reply:
            return Reply({**HELLO, "revision": next(revisions), "image": seen.json()["image"]}, 201)

        api.replies["GET", "/v1/info"] = Reply({**INFO, "registry": registry})
        api.replies["PUT", "/v1/functions/hello"] = deployed
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


async def add_base(registry: str) -> dict[str, Any]:
    """A runtime base in the registry, as the API describes it."""
    layer, config = b"the base's layer", ImageConfig("amd64", entrypoint=("/usr/bin/python3.11",)).to_json()
    async with RegistryClient(f"http://{registry}", "admin", TOKEN) as client:
        for blob in (layer, config):
            await client.upload_blob("runtime/python", blob, Digest.of(blob))
        manifest = Manifest.image(
            Descriptor(OCI_CONFIG, Digest.of(config), len(config)),
            [Descriptor(OCI_LAYER, Digest.of(layer), len(layer))],
        )
        digest = await client.put_manifest("runtime/python", "3.11", manifest)
    return {
        "name": "python3.11", "reference": f"runtime/python:3.11@{digest}", "version": "3.11", "architecture": "amd64",
        "platforms": ["manylinux_2_17_x86_64"],
    }  # fmt: skip


async def manifest_of(registry: str, tag: str, repository: str = "hello") -> Manifest:
    async with RegistryClient(f"http://{registry}", "admin", TOKEN) as client:
        return await client.get_manifest(repository, tag)


def code(folder: Path) -> Path:
    target = folder / "hello"
    target.mkdir()
    (target / "faas.toml").write_text('name = "hello"\nruntime = "python"\nhandler = "app.handler"\npublic = true\n')
    (target / "app.py").write_text("def handler(event, context): ...\n")
    return target


async def test_a_push_writes_the_tags_latest_and_of_its_revision(
    faas: CommandLine, registry: str, tmp_path: Path
) -> None:
    faas.api.replies["PUT", "/v1/runtimes/python"] = Reply(await add_base(registry))
    folder = code(tmp_path)
    for number, body in ((1, "one"), (2, "two")):
        (folder / "app.py").write_text(f"def handler(event, context):\n    return '{body}'\n")
        done = faas.process("push", folder)
        assert (done.code, done.last_line) == (0, HELLO["url"]), done.err
        latest = await manifest_of(registry, "latest")
        assert (await manifest_of(registry, f"v{number}")).digest == latest.digest
        assert faas.api.last("PUT").json()["image"] == f"hello@{latest.digest}"
    first, second = await manifest_of(registry, "v1"), await manifest_of(registry, "v2")
    assert first.layers[:-1] == second.layers[:-1]
    assert first.layers[-1] != second.layers[-1]
    assert "1 already there" in done.err


async def test_login_and_push_with_a_wrong_token_are_not_allowed(
    faas: CommandLine, registry: str, tmp_path: Path
) -> None:
    done = faas.process("login", faas.api.url, "--token-stdin", stdin=TOKEN)
    assert done.code == 0, done.err
    assert "could not be reached" not in done.err
    wrong = faas.process("login", faas.api.url, "--token-stdin", "--user", "somebody", stdin=TOKEN)
    assert wrong.code == 4
    assert "--user NAME" in wrong.err
    folder = code(tmp_path)
    faas.api.replies["PUT", "/v1/runtimes/python"] = Reply(await add_base(registry))
    refused = faas.process("push", folder, FAAS_TOKEN="faas_another")
    assert (refused.code, refused.out) == (4, "")
    assert "faas login" in refused.err
    # The API takes the token, its registry does not.
    faas.api.replies["GET", "/v1/info"] = Reply({**INFO, "registry": registry, "user": "somebody"})
    refused = faas.process("push", folder)
    assert (refused.code, refused.out) == (4, "")
    assert "the registry refused" in refused.err
    assert not any(seen.path == "/v1/functions/hello" for seen in faas.api.seen)
    async with RegistryClient(f"http://{registry}", "admin", TOKEN) as client:
        with pytest.raises(NotFound):
            await client.get_manifest("hello", "latest")


async def test_an_image_of_another_repository_gets_the_functions_tags_too(faas: CommandLine, registry: str) -> None:
    base = await add_base(registry)
    image = await manifest_of(registry, "3.11", "runtime/python")
    rows = [{**image.descriptor().to_json(), "platform": {"os": "linux", "architecture": architecture()}}]
    index = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": rows}).encode()
    async with RegistryClient(f"http://{registry}", "admin", TOKEN) as client:
        await client.put_manifest("runtime/python", "all", Manifest.parse(index))
    pinned = f"runtime/python@{image.digest}"  # as the server takes an index
    for number, tag in ((1, "3.11"), (2, "all")):
        answer = Reply({**HELLO, "revision": number, "image": pinned}, 201)
        faas.api.replies["PUT", "/v1/functions/hello"] = answer
        host = registry.replace("127.0.0.1", "localhost")
        done = faas.process("push", "--image", f"{host}/runtime/python:{tag}", "--name", "hello")
        assert done.code == 0, done.err
        assert "warning" not in done.err
        assert (await manifest_of(registry, f"v{number}")).raw == (await manifest_of(registry, "latest")).raw
        assert (await manifest_of(registry, "latest")).digest == image.digest
    assert base["reference"].endswith(str(image.digest))


async def test_a_base_that_is_not_mounted_passes_through_without_being_held_in_memory(
    registry: str, tmp_path: Path
) -> None:
    (tmp_path / "layer").write_bytes(os.urandom(1 << 20) * 48)
    digest = Digest.of((tmp_path / "layer").read_bytes())
    descriptor = Descriptor(OCI_LAYER, digest, 48 << 20)
    async with RegistryClient(f"http://{registry}", "admin", TOKEN) as client:
        await client.upload_blob("runtime/python", tmp_path / "layer", digest)
        client.mount_blob = never  # type: ignore[assignment]
        tracemalloc.start()
        try:
            await ImagePush(client, "hello", Silent())._mount(descriptor, "runtime/python")
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert await client.has_blob("hello", digest)
    assert most < 16 << 20


async def never(*_: object) -> bool:
    """A registry that does not mount."""
    return False


class Silent:
    """A `faas.build.progress.Progress` that shows nothing."""

    def stage(self, name: str) -> None: ...

    def layer(self, digest: str, description: str, done: int, total: int, state: str) -> None: ...

    def line(self, text: str) -> None: ...
