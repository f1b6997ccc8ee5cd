"""Real clients against the registry with a login: docker and skopeo; and what a crash leaves."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.oci.digest import Digest
from tests.support.registry import RegistryProcess, registry_process


@pytest.fixture(params=["basic", "token"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryProcess]:
    """Asking for Basic, and for the tokens of Docker's flow."""
    with registry_process(tmp_path / "registry", request.param) as running:
        yield running


def run(*command: str | Path, check: bool = True, **options: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=100, **options)  # type: ignore[call-overload]
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.stderr}")
    return str(done.stdout + done.stderr)


def test_without_credentials_nothing_but_the_challenge(registry: RegistryProcess) -> None:
    for path in ("/v2/", "/v2/_catalog", "/v2/x/tags/list", f"/v2/x/blobs/sha256:{'0' * 64}"):
        reply = registry.call("GET", path, login=False)
        assert reply.status == 401
        assert reply.headers["WWW-Authenticate"].startswith({"basic": "Basic", "token": "Bearer"}[registry.auth])
    wrong = {"Authorization": "Basic " + "YWRtaW46d3Jvbmc="}
    assert registry.call("GET", "/v2/", headers=wrong, login=False).status == 401


@pytest.mark.docker
def test_docker_logs_in_pushes_and_pulls(registry: RegistryProcess, tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "data").write_bytes(os.urandom(300_000))
    (context / "Dockerfile").write_text('FROM scratch\nCOPY data /data\nCMD ["/data"]\n')
    image = f"{registry.host}/team/app:v1"
    docker = ("docker", "--config", tmp_path / "config")
    run("docker", "build", "-q", "-t", image, context)
    try:
        refused = run(*docker, "push", image, check=False)
        assert {"basic": "no basic auth credentials", "token": "unauthorized"}[registry.auth] in refused
        login = run(*docker, "login", "-u", "admin", "--password-stdin", registry.host, input=registry.token)
        assert "Login Succeeded" in login
        run(*docker, "push", image)
        run("docker", "rmi", image)
        run(*docker, "pull", image)
    finally:
        run("docker", "rmi", "-f", image, check=False)


@pytest.mark.skopeo
def test_skopeo_copies_both_ways_and_deletes(registry: RegistryProcess, tmp_path: Path) -> None:
    registry.push_image("first", "v1", os.urandom(100_000))
    skopeo = ("skopeo", "--insecure-policy")
    source, target = ("--src-tls-verify=false", "--src-creds"), ("--dest-tls-verify=false", "--dest-creds")
    admin = f"admin:{registry.token}"
    layout = f"oci:{tmp_path}/layout:v1"
    run(*skopeo, "copy", *source, admin, f"docker://{registry.host}/first:v1", layout)
    run(*skopeo, "copy", *target, admin, layout, f"docker://{registry.host}/second:v2")
    first, second = (registry.call("GET", f"/v2/{name}") for name in ("first/manifests/v1", "second/manifests/v2"))
    assert first.headers["Docker-Content-Digest"]
    assert second.status == 200
    run(*skopeo, "delete", "--tls-verify=false", "--creds", admin, f"docker://{registry.host}/second:v2")
    assert registry.call("GET", "/v2/second/manifests/v2").status == 404


@pytest.mark.timeout(120)
def test_every_push_that_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    registry = RegistryProcess(tmp_path / "registry", "none").start()
    acknowledged: dict[str, tuple[str, bytes, bytes]] = {}
    for round_number in range(5):
        killer = threading.Timer(dice.uniform(0.05, 0.6), os.kill, (registry.process.pid, signal.SIGKILL))
        killer.start()
        for number in range(1000):
            layer = dice.randbytes(dice.randint(1, 200_000))
            name = f"r{round_number}-{number}"
            try:
                digest, raw = registry.push_image("kept", name, layer)
            except (OSError, AssertionError, Exception):
                break
            acknowledged[name] = (digest, raw, layer)
        killer.join()
        registry.process.wait(10)
        assert registry.process.stdout is not None
        registry.process.stdout.close()
        registry.start()
    try:
        assert len(acknowledged) > 5
        for name, (digest, raw, layer) in acknowledged.items():
            assert registry.call("GET", f"/v2/kept/manifests/{name}").body == raw, name
            assert registry.call("GET", f"/v2/kept/blobs/{Digest.of(layer)}").body == layer, (name, digest)
        for path in (tmp_path / "registry" / "blobs").glob("*/*/*"):
            assert hashlib.new(path.parent.parent.name, path.read_bytes()).hexdigest() == path.name
    finally:
        registry.stop()


def test_memory_stays_flat_whatever_the_layers_size(tmp_path: Path) -> None:
    with registry_process(tmp_path / "registry") as registry:
        status = Path(f"/proc/{registry.process.pid}/status")

        def peak() -> int:
            return int(next(line for line in status.read_text().splitlines() if "VmHWM" in line).split()[1]) * 1024

        registry.push_blob("warm", b"x" * 1_000_000)
        before = peak()
        began = time.monotonic()
        registry.push_blob("large", b"y" * 200_000_000)
        print(f"200 MB in {time.monotonic() - began:.2f} s")
        assert peak() - before < 40_000_000
