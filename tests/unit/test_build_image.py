"""One image on its way into a registry: uploads side by side, one of which fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from faas.build.image import ImagePush
from faas.build.layer import Layer, Member, pack
from faas.errors import Forbidden
from faas.oci.client import RegistryClient
from faas.protocol import RuntimeBase
from faas.spec import parse
from tests.support.fake_api import FakeApi, Reply, Seen
from tests.support.fake_registry import FakeRegistry


class Shown:
    """A `faas.build.progress.Progress` that remembers."""

    def __init__(self) -> None:
        self.states: list[tuple[str, str]] = []

    def stage(self, name: str) -> None: ...

    def line(self, text: str) -> None: ...

    def layer(self, digest: str, description: str, done: int, total: int, state: str) -> None:
        self.states.append((description, state))


class OneRefused(FakeRegistry):
    """Refuses the layer that says so, and takes the others very slowly."""

    def _upload(self, seen: Seen, repository: str, name: str) -> Reply:
        if seen.method != "PUT":
            return super()._upload(seen, repository, name)
        return Reply(status=403) if b"refuse me" in seen.body else Reply(status=201, delay=60)


def layer(folder: Path, name: str) -> Layer:
    return pack([Member("x", content=name.encode())], folder / f"{name}.tar", name)


async def test_the_first_upload_that_fails_ends_the_others(tmp_path: Path) -> None:
    registry = OneRefused()
    base = RuntimeBase("python3.11", registry.add_base(), "3.11", "amd64", ())
    spec = parse({"name": "x", "runtime": "python", "handler": "app.handler"})
    before = asyncio.all_tasks()
    with FakeApi() as api:
        api.otherwise = registry
        async with RegistryClient(api.url) as client:
            push = ImagePush(client, "x", Shown())
            with pytest.raises(Forbidden):
                await push.function(base, spec, [layer(tmp_path, "slow"), layer(tmp_path, "refuse me")], ["latest"])
            assert asyncio.all_tasks() == before
    assert ("x", "latest") not in registry.manifests
