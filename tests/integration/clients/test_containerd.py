"""containerd: push and pull, whole indexes and one platform, mounts; its token flow asks with a form."""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from faas.oci.manifest import Manifest
from tests.integration.clients.conftest import LOGIN_ASKED
from tests.support.containerd import Ctr, containerd
from tests.support.recorded_registry import RecordedRegistry
from tests.support.samples import Samples

pytestmark = [pytest.mark.root, pytest.mark.containerd]

NUMBERS = itertools.count()


class NewCtr(Protocol):
    def __call__(self) -> Ctr: ...


@pytest.fixture(scope="module")
def socket(client_folder: Path) -> Iterator[Path]:
    with containerd(client_folder / "containerd") as running:
        yield running


@pytest.fixture
def new_ctr(socket: Path) -> NewCtr:
    """A namespace that has seen nothing yet."""
    return lambda: Ctr(socket, f"n{next(NUMBERS)}")


def load(ctr: Ctr, image: str, samples: Samples, manifest: Manifest, folder: Path) -> None:
    """Bring `manifest` in as `image`, which ends in `:v1`."""
    samples.layout(folder / "layout", manifest)
    with tarfile.open(folder / "layout.tar", "w") as archive:
        archive.add(folder / "layout", ".")
    base = image.removesuffix(":v1")
    ctr("images", "import", "--no-unpack", "--all-platforms", "--base-name", base, folder / "layout.tar")
    assert ctr.digest(image) == str(manifest.digest)


def user(registry: RecordedRegistry) -> str:
    return "" if registry.auth == "none" else f"admin:{registry.token}"


def test_an_image_comes_back_as_it_was_pushed(
    new_ctr: NewCtr, registry: RecordedRegistry, name: str, tmp_path: Path
) -> None:
    image, samples = f"{registry.host}/{name}:v1", Samples()
    manifest = samples.image()
    here, there = new_ctr(), new_ctr()
    load(here, image, samples, manifest, tmp_path)
    with registry.recorded() as asked:
        here.push(image, user=user(registry))
        there.pull(image, user=user(registry))
    assert there.digest(image) == str(manifest.digest)
    assert there.has(manifest.digest, *(blob.digest for blob in manifest.blobs))
    forms = [one for one in asked if (one.method, one.path) == ("POST", "/token")]
    assert bool(forms) is (registry.auth == "token")
    assert {one.status for one in forms} <= {200}


@LOGIN_ASKED
def test_without_a_login_or_with_a_wrong_one_nothing_is_pushed(
    new_ctr: NewCtr, registry: RecordedRegistry, name: str, stranger: str, tmp_path: Path
) -> None:
    image, samples, ctr = f"{registry.host}/{name}:v1", Samples(), new_ctr()
    load(ctr, image, samples, samples.image(samples.layer()), tmp_path)
    for who in ("", f"{stranger}:wrong"):
        refused = ctr.push(image, user=who, check=False)  # it asks so often that it may be told to wait
        assert re.search("401 Unauthorized|insufficient_scope|authorization failed|429 Too Many", refused), refused
    assert registry.call("GET", f"/v2/{name}/tags/list").status == 404


def test_an_index_is_pushed_whole_and_pulled_by_platform(
    new_ctr: NewCtr, registry: RecordedRegistry, name: str, tmp_path: Path
) -> None:
    image, samples = f"{registry.host}/{name}:v1", Samples()
    index = samples.index("amd64", "arm64")
    here, arm, every = new_ctr(), new_ctr(), new_ctr()
    load(here, image, samples, index, tmp_path)
    here.push(image, user=user(registry))
    amd64, arm64 = (entry.digest for entry in index.manifests)
    arm.pull(image, "--platform=linux/arm64", user=user(registry))
    assert arm.has(index.digest, arm64, *(blob.digest for blob in samples.manifests[str(arm64)].blobs))
    assert not arm.has(amd64)
    every.pull(image, "--all-platforms", user=user(registry))
    assert every.has(*(blob.digest for entry in (amd64, arm64) for blob in samples.manifests[str(entry)].blobs))
    assert every.digest(image) == str(index.digest)


def test_what_was_pulled_is_mounted_in_another_repository(
    new_ctr: NewCtr, registry: RecordedRegistry, name: str, tmp_path: Path
) -> None:
    first, second, samples = f"{registry.host}/{name}/first:v1", f"{registry.host}/{name}/second:v1", Samples()
    manifest = samples.image()
    here, there = new_ctr(), new_ctr()
    load(here, first, samples, manifest, tmp_path)
    here.push(first, user=user(registry))
    there.pull(first, user=user(registry))
    there("images", "tag", first, second)
    with registry.recorded() as asked:
        there.push(second, user=user(registry))
    assert {one.mounted for one in asked} - {""} == {str(blob.digest) for blob in manifest.blobs}
    assert [one for one in asked if one.is_upload] == []
    assert registry.call("GET", f"/v2/{name}/second/manifests/v1").body == manifest.raw


def test_what_is_public_is_pulled_without_a_login_and_not_pushed(
    new_ctr: NewCtr, public_registry: RecordedRegistry, name: str
) -> None:
    ctr, samples = new_ctr(), Samples()
    manifest = samples.image()
    public_registry.push_samples(f"public/{name}", samples, manifest, "v1")
    public_registry.push_samples(f"hidden/{name}", samples, manifest, "v1")
    image, hidden = (f"{public_registry.host}/{kind}/{name}:v1" for kind in ("public", "hidden"))
    ctr.pull(image)
    assert ctr.digest(image) == str(manifest.digest)
    ctr("images", "tag", image, f"{image}-mine")
    for refused in (ctr.pull(hidden, check=False), ctr.push(f"{image}-mine", check=False)):
        assert re.search("401 Unauthorized|insufficient_scope|authorization failed|closed pipe", refused), refused
    assert public_registry.call("GET", f"/v2/public/{name}/tags/list").json()["tags"] == ["v1"]
