"""Podman's service in an engine's place, beside what the contract says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from faas.errors import Unavailable
from tests.support.images import MemoryImages
from tests.support.podman import podman_service
from tests.support.sandboxes import workbench
from worker.drivers.base import DriverPaths, Exit
from worker.drivers.docker import engine as docker_engine
from worker.drivers.docker.driver import DockerDriver
from worker.drivers.docker.engine import Engine

pytestmark = [pytest.mark.root, pytest.mark.podman, pytest.mark.oci]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with podman_service(tmp_path_factory.mktemp("podman")) as host:
        yield host


async def test_podmans_own_socket_is_taken_where_docker_has_none(
    podman: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(docker_engine, "DOCKER_SOCKET", tmp_path / "none")
    monkeypatch.setattr(docker_engine, "PODMAN_SOCKET", Path(podman.removeprefix("unix://")))
    assert DockerDriver.available()
    async with workbench(tmp_path, kind="podman") as bench:
        assert isinstance(bench.driver, DockerDriver)
        assert bench.driver._engine.podman
        assert await bench.run("env", "GREETING") == (Exit(0), "hello\n")


async def test_what_only_podman_needs_goes_with_the_server(
    podman: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", podman)
    async with workbench(tmp_path, kind="podman", pauses=0) as bench:
        assert isinstance(bench.driver, DockerDriver)
        machine = bench.driver._machine
        assert Path(machine.seccomp).parent == machine.run
        async with bench.running("exit", "4") as sandbox, asyncio.timeout(20):
            assert await sandbox.exited == Exit(4)
        async with bench.running("wait") as sandbox, asyncio.timeout(20):
            await sandbox.stdout.readuntil(b"waiting\n")
        assert bench.driver._watches._open == {}
    assert not machine.run.exists()


async def test_a_users_own_service_is_refused_with_the_reason(
    podman: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", podman)
    info = docker.APIClient.info
    options = ["name=seccomp,profile=default", "name=rootless"]
    monkeypatch.setattr(docker.APIClient, "info", lambda api: {**info(api), "SecurityOptions": options})
    driver = DockerDriver(DriverPaths(tmp_path, "none0000"), MemoryImages())
    with pytest.raises(Unavailable, match="rootless"):
        await driver.open()


def test_a_socket_that_may_not_be_opened_is_said_with_what_to_do() -> None:
    with pytest.raises(Unavailable, match="does not answer") as refusal, Engine("none0000").errors("be reached"):
        raise PermissionError(13, "Permission denied")
    assert "DOCKER_HOST" in (refusal.value.hint or "")
