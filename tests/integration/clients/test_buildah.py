"""buildah: images from scratch for two machines, and an index of them, in both formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.oci import media_types
from tests.support.containers import Containers
from tests.support.recorded_registry import RecordedRegistry

pytestmark = [pytest.mark.root, pytest.mark.buildah]

MACHINES = ("amd64", "arm64")


@pytest.fixture
def buildah(registry: RecordedRegistry, tmp_path: Path) -> Iterator[Containers]:
    running = Containers("buildah", tmp_path / "containers", registry)
    yield running
    running.remove()


@pytest.mark.parametrize(
    ("format_", "image_type", "index_type"),
    [
        ("oci", media_types.OCI_MANIFEST, media_types.OCI_INDEX),
        ("v2s2", media_types.DOCKER_MANIFEST, media_types.DOCKER_INDEX),
    ],
    ids=["oci", "docker"],
)
def test_an_index_of_images_from_scratch(
    buildah: Containers, name: str, tmp_path: Path, format_: str, image_type: str, index_type: str
) -> None:
    registry = buildah.registry
    buildah.login()
    buildah("manifest", "create", "every")
    for machine in MACHINES:
        (tmp_path / "machine").write_text(machine)
        working = buildah("from", f"--arch={machine}", "scratch").strip()
        buildah("copy", working, tmp_path / "machine", "/machine")
        buildah("config", f"--arch={machine}", "--os=linux", working)
        buildah("commit", "--rm", working, machine)
        buildah("manifest", "add", "every", machine)
    target = f"{registry.host}/{name}:v1"
    buildah("manifest", "push", "--all", "--tls-verify=false", f"--format={format_}", "every", f"docker://{target}")
    index = registry.manifest(name, "v1")
    assert (index.media_type, len(index.manifests)) == (index_type, 2)
    for machine, entry in zip(MACHINES, index.manifests, strict=True):
        stored = registry.manifest(name, str(entry.digest))
        assert stored.media_type == image_type
        buildah("rmi", "--all", "--force")
        image = buildah("pull", "--quiet", "--tls-verify=false", f"--arch={machine}", target).strip()
        assert stored.config is not None
        assert image == stored.config.digest.hex
        working = buildah("from", image).strip()
        mounted = Path(buildah("mount", working).strip())
        assert (mounted / "machine").read_text() == machine
        buildah("rm", working)
