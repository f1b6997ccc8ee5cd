"""`faas push` and `faas login` against the real registry, running alone; the control API beside it is a fake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faas.oci.client import RegistryClient
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig, Manifest
from faas.oci.media_types import OCI_CONFIG, OCI_LAYER
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


async def manifest_of(registry: str, tag: str) -> Manifest:
    async with RegistryClient(f"http://{registry}", "admin", TOKEN) as client:
        return await client.get_manifest("hello", tag)


async def test_a_push_writes_the_tags_latest_and_of_its_revision(
    faas: CommandLine, registry: str, tmp_path: Path
) -> None:
    faas.api.replies["PUT", "/v1/runtimes/python"] = Reply(await add_base(registry))
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "faas.toml").write_text('name = "hello"\nruntime = "python"\nhandler = "app.handler"\npublic = true\n')
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


async def test_login_and_push_with_a_wrong_token_are_not_allowed(faas: CommandLine, registry: str) -> None:
    done = faas.process("login", faas.api.url, "--token-stdin", stdin=TOKEN)
    assert done.code == 0, done.err
    assert "could not be reached" not in done.err
    wrong = faas.process("login", faas.api.url, "--token-stdin", "--user", "somebody", stdin=TOKEN)
    assert wrong.code == 4
    assert "--user NAME" in wrong.err
