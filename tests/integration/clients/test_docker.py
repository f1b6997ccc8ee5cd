"""Docker: login, push, pull, lists of manifests for several platforms, mounts, and what is public."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from faas.oci import media_types
from tests.support.commands import run
from tests.support.recorded_registry import RecordedRegistry
from tests.support.samples import Samples

pytestmark = pytest.mark.docker


@dataclass(frozen=True)
class Docker:
    """docker with a login of its own. The engine is shared: what is loaded or pulled has this registry's name."""

    registry: RecordedRegistry
    config: Path

    def __call__(self, *words: str | Path, check: bool = True, stdin: str | bytes = b"") -> str:
        return run("docker", "--config", self.config, *words, check=check, stdin=stdin)

    def login(self) -> str:
        return self("login", "-u", "admin", "--password-stdin", self.registry.host, stdin=self.registry.password)

    def digest(self, image: str) -> str:
        """What the engine says that it pushed or pulled."""
        digests = self.inspect(image)["RepoDigests"]
        repository = image.rpartition(":")[0]
        return next(str(one).partition("@")[2] for one in digests if one.startswith(f"{repository}@"))

    def inspect(self, image: str) -> dict[str, Any]:
        return dict(json.loads(self("image", "inspect", image))[0])

    def remove(self) -> None:
        """Every image that has to do with this registry."""
        listed = self("images", "--digests", "--format", "{{.Repository}} {{.Tag}} {{.Digest}}", check=False)
        ours = [row.split() for row in listed.splitlines() if row.startswith(f"{self.registry.host}/")]
        names = {f"{name}:{tag}" if tag != "<none>" else f"{name}@{digest}" for name, tag, digest in ours}
        if names:
            self("rmi", "--force", *sorted(names), check=False)


@pytest.fixture
def docker(registry: RecordedRegistry, tmp_path: Path) -> Iterator[Docker]:
    running = Docker(registry, tmp_path / "config")
    yield running
    running.remove()


def test_login_push_and_pull(docker: Docker, name: str, stranger: str) -> None:
    registry, samples = docker.registry, Samples()
    manifest = samples.image()
    image = f"{registry.host}/{name}:v1"
    docker("load", "--quiet", stdin=samples.docker_archive({image: manifest}))
    if registry.auth != "none":
        with registry.recorded() as asked:
            refused = docker("push", image, check=False)
        assert {"basic": "no basic auth credentials", "token": "denied"}[registry.auth] in refused
        assert len([one for one in asked if one.method == "POST"]) <= 4  # else it takes the answer for a passing one
        wrong = docker("login", "-u", stranger, "-p", "wrong", registry.host, check=False)
        assert "unauthorized" in wrong.lower()
    assert "Login Succeeded" in docker.login()
    assert "digest: sha256:" in docker("push", image)
    digest = docker.digest(image)
    pushed = registry.manifest(name, "v1")
    assert (pushed.media_type, str(pushed.digest)) == (media_types.DOCKER_MANIFEST, digest)
    for reference in (image, f"{registry.host}/{name}@{digest}"):
        docker.remove()
        assert f"Digest: {digest}" in docker("pull", reference)
        assert docker.inspect(reference)["Id"] == str(manifest.config and manifest.config.digest)


def test_a_list_of_manifests_is_pulled_by_platform(docker: Docker, name: str) -> None:
    registry, samples = docker.registry, Samples()
    docker.login()
    machines = ("amd64", "arm64")
    images = {f"{registry.host}/{name}:{machine}": samples.image(architecture=machine) for machine in machines}
    docker("load", "--quiet", stdin=samples.docker_archive(images))
    for image in images:
        docker("push", "--quiet", image)
    every = f"{registry.host}/{name}:every"
    docker("manifest", "create", "--insecure", every, *images)
    digest = docker("manifest", "push", "--insecure", "--purge", every).split()[-1]
    listed = registry.manifest(name, "every")
    assert (listed.media_type, str(listed.digest)) == (media_types.DOCKER_INDEX, digest)
    assert [entry.digest for entry in listed.manifests] == [registry.manifest(name, m).digest for m in machines]
    assert len(json.loads(docker("manifest", "inspect", "--insecure", every))["manifests"]) == 2
    for machine, manifest in zip(machines, images.values(), strict=True):
        docker.remove()
        docker("pull", "--quiet", "--platform", f"linux/{machine}", every)
        pulled = docker.inspect(every)
        assert (pulled["Architecture"], pulled["Id"]) == (machine, str(manifest.config and manifest.config.digest))


def test_an_index_of_oci_images_is_pulled(docker: Docker, name: str) -> None:
    registry, samples = docker.registry, Samples()
    index = samples.index("amd64", "arm64")
    registry.push_samples(name, samples, index, "v1")
    docker.login()
    docker("pull", "--quiet", "--platform", "linux/arm64", f"{registry.host}/{name}:v1")
    assert docker.digest(f"{registry.host}/{name}:v1") == str(index.digest)
    assert docker.inspect(f"{registry.host}/{name}:v1")["Architecture"] == "arm64"


def test_another_repository_mounts_the_layers_and_gets_no_bytes(docker: Docker, name: str) -> None:
    registry, samples = docker.registry, Samples()
    first, second = f"{registry.host}/{name}/first:v1", f"{registry.host}/{name}/second:v1"
    docker.login()
    docker("load", "--quiet", stdin=samples.docker_archive({first: samples.image()}))
    docker("push", "--quiet", first)
    docker("tag", first, second)
    with registry.recorded() as asked:
        docker("push", "--quiet", second)
    pushed = registry.manifest(f"{name}/second", "v1")
    assert pushed == registry.manifest(f"{name}/first", "v1")
    assert {one.mounted for one in asked} - {""} == {str(layer.digest) for layer in pushed.layers}
    assert len([one for one in asked if one.method == "PATCH"]) == 1  # the config: docker never mounts that


def test_what_is_public_is_pulled_without_a_login_and_pushed_with_one(
    public_registry: RecordedRegistry, name: str, tmp_path: Path
) -> None:
    docker, samples = Docker(public_registry, tmp_path / "config"), Samples()
    manifest = samples.image()
    public_registry.push_samples(f"public/{name}", samples, manifest, "v1")
    public_registry.push_samples(f"hidden/{name}", samples, manifest, "v1")
    image, hidden = (f"{public_registry.host}/{kind}/{name}:v1" for kind in ("public", "hidden"))
    try:
        docker("pull", "--quiet", image)
        assert docker.digest(image) == str(manifest.digest)
        assert "denied" in docker("pull", hidden, check=False)
        docker("tag", image, f"{image}-mine")
        assert "denied" in docker("push", f"{image}-mine", check=False)
        assert public_registry.call("GET", f"/v2/public/{name}/tags/list").json()["tags"] == ["v1"]
        docker.login()
        docker("push", "--quiet", f"{image}-mine")
        docker("pull", "--quiet", hidden)
    finally:
        docker.remove()
    assert public_registry.call("GET", f"/v2/public/{name}/tags/list").json()["tags"] == ["v1", "v1-mine"]
