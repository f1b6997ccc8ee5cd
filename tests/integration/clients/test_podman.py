"""podman: login, push, pull, by digest and by platform; a second repository gets no bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers import Containers
from tests.support.recorded_registry import RecordedRegistry
from tests.support.samples import Samples

pytestmark = [pytest.mark.root, pytest.mark.podman]


@pytest.fixture
def podman(registry: RecordedRegistry, tmp_path: Path) -> Iterator[Containers]:
    running = Containers("podman", tmp_path / "containers", registry)
    yield running
    running.remove()


def load(podman: Containers, folder: Path) -> str:
    """A new image; its id."""
    samples = Samples()
    image = samples.image()
    podman("pull", "--quiet", f"oci:{samples.layout(folder / 'layout', image)}:v1")
    assert image.config is not None
    return image.config.digest.hex


def push(podman: Containers, image: str, target: str, folder: Path) -> str:
    """The digest that it got."""
    digest = folder / "digest"
    podman("push", "--tls-verify=false", "--digestfile", digest, image, target)
    return digest.read_text()


def inspect(podman: Containers, image: str) -> dict[str, Any]:
    return dict(json.loads(podman("image", "inspect", image))[0])


def test_login_push_and_pull(podman: Containers, name: str, tmp_path: Path) -> None:
    registry, image = podman.registry, load(podman, tmp_path)
    target = f"{registry.host}/{name}:v1"
    if registry.auth != "none":
        refused = podman("push", "--tls-verify=false", image, target, check=False)
        assert {"basic": "unauthorized", "token": "is denied"}[registry.auth] in refused
    assert "Login Succeeded" in podman.login()
    digest = push(podman, image, target, tmp_path)
    assert registry.call("HEAD", f"/v2/{name}/manifests/v1").headers["Docker-Content-Digest"] == digest
    for reference in (target, f"{registry.host}/{name}@{digest}"):
        podman("rmi", "--all", "--force")
        podman("pull", "--tls-verify=false", reference)
        pulled = inspect(podman, reference)
        assert (pulled["Id"], pulled["Digest"]) == (image, digest)


def test_an_index_is_pulled_by_platform(podman: Containers, name: str) -> None:
    registry, samples = podman.registry, Samples()
    index = samples.index("amd64", "arm64")
    registry.push_samples(name, samples, index, "v1")
    podman.login()
    for number, machine in enumerate(("amd64", "arm64")):
        podman("pull", "--tls-verify=false", f"--arch={machine}", f"{registry.host}/{name}:v1")
        pulled = inspect(podman, f"{registry.host}/{name}:v1")
        manifest = samples.manifests[str(index.manifests[number].digest)]
        assert manifest.config is not None
        assert (pulled["Id"], pulled["Architecture"]) == (manifest.config.digest.hex, machine)


def test_a_second_repository_gets_no_layers(podman: Containers, name: str, tmp_path: Path) -> None:
    registry, image = podman.registry, load(podman, tmp_path)
    podman.login()
    first = push(podman, image, f"{registry.host}/{name}/first:v1", tmp_path)
    with registry.recorded() as asked:
        second = push(podman, image, f"{registry.host}/{name}/second:v1", tmp_path)
    assert first == second
    assert len({one.mounted for one in asked} - {""}) == 2
    assert len([one for one in asked if one.is_upload]) <= 1  # the config: podman never mounts that
