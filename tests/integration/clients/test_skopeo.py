"""skopeo: copies both ways and between repositories, whole indexes, Docker's format, inspect, delete, sync."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from faas.oci import media_types
from faas.oci.digest import Digest
from tests.integration.clients.conftest import LOGIN_ASKED
from tests.support.recorded_registry import RecordedRegistry
from tests.support.samples import Samples
from tests.support.skopeo import Skopeo

pytestmark = pytest.mark.skopeo


@pytest.fixture
def skopeo(registry: RecordedRegistry) -> Skopeo:
    return Skopeo(registry)


@pytest.fixture
def open_skopeo(open_registry: RecordedRegistry) -> Skopeo:
    return Skopeo(open_registry)


def test_a_copy_there_and_back_is_the_same_image(skopeo: Skopeo, name: str, tmp_path: Path) -> None:
    samples = Samples()
    image = samples.image()
    skopeo.copy(f"oci:{samples.layout(tmp_path / 'there', image)}:v1", skopeo.at(f"{name}:v1"))
    assert skopeo.registry.manifest(name, "v1").raw == image.raw
    skopeo.copy(skopeo.at(f"{name}@{image.digest}"), f"oci:{tmp_path}/back:v1")
    blobs = tmp_path / "back" / "blobs" / "sha256"
    assert (blobs / image.digest.hex).read_bytes() == image.raw
    for descriptor in image.blobs:
        assert (blobs / descriptor.digest.hex).read_bytes() == samples.blobs[descriptor.digest]


@LOGIN_ASKED
def test_without_credentials_or_with_wrong_ones_nothing_is_pushed(
    skopeo: Skopeo, name: str, stranger: str, tmp_path: Path
) -> None:
    samples = Samples()
    layout = samples.layout(tmp_path / "layout", samples.image())
    for credentials in ("--dest-no-creds", f"--dest-creds={stranger}:wrong"):
        options = ("--dest-tls-verify=false", credentials)
        refused = skopeo("copy", *options, f"oci:{layout}:v1", skopeo.at(f"{name}:v1"), check=False)
        assert re.search("(?i)unauthorized|authentication required|is denied", refused), refused
    assert skopeo.registry.call("GET", f"/v2/{name}/tags/list").status == 404


def test_who_logs_in_stays_so_until_they_log_out(skopeo: Skopeo, name: str, stranger: str, tmp_path: Path) -> None:
    registry, options = skopeo.registry, (f"--authfile={tmp_path}/auth.json", "--tls-verify=false")
    registry.push_image(name, "v1")
    if registry.auth != "none":
        wrong = skopeo("login", *options, "-u", stranger, "-p", "wrong", registry.host, check=False)
        assert "invalid username/password" in wrong
    assert "Login Succeeded" in skopeo("login", *options, "-u", "admin", "-p", registry.password, registry.host)
    assert "v1" in skopeo("list-tags", *options, skopeo.at(name))
    assert "Removed login credentials" in skopeo("logout", options[0], registry.host)
    assert (skopeo("list-tags", *options, skopeo.at(name), check=False).count("v1") > 0) is (registry.auth == "none")


def test_all_copies_every_platform_of_an_index(skopeo: Skopeo, name: str, tmp_path: Path) -> None:
    samples = Samples()
    index = samples.index("amd64", "arm64", "riscv64")
    layout = f"oci:{samples.layout(tmp_path / 'layout', index)}:v1"
    skopeo.copy(layout, skopeo.at(f"{name}:all"), "--all")
    assert skopeo.registry.manifest(name, "all").raw == index.raw
    for entry in index.manifests:
        assert skopeo.registry.manifest(name, str(entry.digest)).raw == samples.manifests[str(entry.digest)].raw
    for number, machine in enumerate(("amd64", "arm64", "riscv64")):
        skopeo("--override-arch", machine, "copy", *skopeo.side("src", "docker:"), skopeo.at(f"{name}:all"),
               f"oci:{tmp_path}/{machine}:v1")  # fmt: skip
        assert (tmp_path / machine / "blobs" / "sha256" / index.manifests[number].digest.hex).exists()


def test_format_v2s2_pushes_dockers_types(open_skopeo: Skopeo, name: str, tmp_path: Path) -> None:
    samples = Samples()
    image, index = samples.image(), samples.index("amd64", "arm64")
    for tag, manifest in (("image", image), ("index", index)):
        layout = samples.layout(tmp_path / tag, manifest)
        open_skopeo.copy(f"oci:{layout}:v1", open_skopeo.at(f"{name}:{tag}"), "--all", "--format=v2s2")
    converted = open_skopeo.registry.manifest(name, "image")
    assert converted.media_type == media_types.DOCKER_MANIFEST
    assert [layer.media_type for layer in converted.layers] == [media_types.DOCKER_LAYER_GZIP] * 2
    assert [layer.digest for layer in converted.layers] == [layer.digest for layer in image.layers]
    listed = open_skopeo.registry.manifest(name, "index")
    assert listed.media_type == media_types.DOCKER_INDEX
    for entry in listed.manifests:
        assert open_skopeo.registry.manifest(name, str(entry.digest)).media_type == media_types.DOCKER_MANIFEST
    open_skopeo.copy(open_skopeo.at(f"{name}:image"), f"oci:{tmp_path}/back:v1", "--format=oci")


def test_inspect_and_list_tags(skopeo: Skopeo, name: str) -> None:
    tags = [f"v{number}" for number in range(3)]
    pushed = {tag: skopeo.registry.push_image(name, tag, tag.encode())[0] for tag in tags}
    seen = skopeo.read("inspect", f"{name}:v1")
    assert (seen["Name"], seen["Digest"]) == (f"{skopeo.registry.host}/{name}", pushed["v1"])
    assert (seen["Os"], seen["Architecture"], seen["RepoTags"]) == ("linux", "amd64", tags)
    assert skopeo.read("list-tags", name)["Tags"] == tags


def test_another_repository_mounts_the_layers_and_gets_no_bytes(skopeo: Skopeo, name: str, tmp_path: Path) -> None:
    samples = Samples()
    image = samples.image()
    layout = f"oci:{samples.layout(tmp_path / 'layout', image)}:v1"
    with skopeo.registry.recorded() as first:
        skopeo.copy(layout, skopeo.at(f"{name}/first:v1"))
    assert len([asked for asked in first if asked.is_upload]) == 3
    with skopeo.registry.recorded() as second:
        skopeo.copy(skopeo.at(f"{name}/first:v1"), skopeo.at(f"{name}/second:v1"))
    assert {asked.mounted for asked in second} >= {str(layer.digest) for layer in image.layers}
    assert len([asked for asked in second if asked.is_upload]) <= 1  # the config: skopeo never mounts that
    assert skopeo.registry.manifest(f"{name}/second", "v1").raw == image.raw


def test_what_is_deleted_frees_its_bytes(skopeo: Skopeo, name: str) -> None:
    registry = skopeo.registry
    shared, own = b"shared" * 1000, name.encode() * 1000
    registry.push_image(name, "kept", shared)
    digest, _ = registry.push_image(name, "gone", own, annotations={"for": "gone"})
    skopeo("delete", *skopeo.access(), skopeo.at(f"{name}:gone"))
    for reference in ("gone", digest):
        assert registry.call("GET", f"/v2/{name}/manifests/{reference}").status == 404
    registry.leases_end()
    assert registry.call("POST", "/v2/_faas/gc").json()["bytes"] >= len(own)
    assert not registry.file(own).exists()
    assert registry.file(shared).exists()
    assert skopeo.read("list-tags", name)["Tags"] == ["kept"]
    assert "manifest unknown" in skopeo("inspect", *skopeo.access(), skopeo.at(f"{name}:gone"), check=False)


def test_sync_brings_a_repository_into_a_folder_and_into_another_registry(
    skopeo: Skopeo, name: str, tmp_path: Path
) -> None:
    registry, repository = skopeo.registry, name.rpartition("/")[2]
    pushed = {tag: registry.push_image(name, tag, tag.encode())[0] for tag in ("v1", "v2", "v3")}
    access = [*skopeo.side("src", "docker:"), "--src=docker", f"{registry.host}/{name}"]
    skopeo("sync", *access, "--dest=dir", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {f"{repository}:{tag}" for tag in pushed}
    target = f"{registry.host}/mirror"
    skopeo("sync", *skopeo.side("dest", "docker:"), "--src=dir", "--dest=docker", str(tmp_path), target)
    skopeo("sync", *skopeo.side("dest", "docker:"), *access, "--dest=docker", f"{registry.host}/mirror/again")
    for tag, digest in pushed.items():
        for mirror in (f"mirror/{repository}", f"mirror/again/{repository}"):
            assert str(registry.manifest(mirror, tag).digest) == digest


def test_a_foreign_layer_is_named_but_not_pushed(open_skopeo: Skopeo, name: str, tmp_path: Path) -> None:
    registry, samples = open_skopeo.registry, Samples()
    elsewhere = samples.layer()
    url = f"http://{registry.host}/v2/{name}/elsewhere/blobs/{Digest.of(elsewhere)}"
    registry.push_blob(f"{name}/elsewhere", elsewhere)
    image = samples.image_with_foreign_layer(url, samples.layer(), elsewhere)
    layout = samples.layout(tmp_path / "layout", image)
    open_skopeo.copy(f"oci:{layout}:v1", open_skopeo.at(f"{name}:v1"))
    assert registry.manifest(name, "v1").raw == image.raw
    own, foreign = image.layers
    assert registry.call("HEAD", f"/v2/{name}/blobs/{own.digest}").status == 200
    assert registry.call("HEAD", f"/v2/{name}/blobs/{foreign.digest}").status == 404
    open_skopeo.copy(open_skopeo.at(f"{name}:v1"), f"dir:{tmp_path}/dir")
    assert (tmp_path / "dir" / foreign.digest.hex).read_bytes() == elsewhere  # fetched from the URL


def test_what_is_public_is_pulled_without_a_login_and_not_pushed(
    public_registry: RecordedRegistry, name: str, tmp_path: Path
) -> None:
    skopeo, samples = Skopeo(public_registry), Samples()
    manifest = samples.image()
    public_registry.push_samples(f"public/{name}", samples, manifest, "v1")
    public_registry.push_samples(f"hidden/{name}", samples, manifest, "v1")
    image, hidden = (skopeo.at(f"{kind}/{name}:v1") for kind in ("public", "hidden"))
    here = f"oci:{tmp_path}/here:v1"
    stranger = ("--src-no-creds", "--src-tls-verify=false")
    skopeo("copy", *stranger, image, here)
    assert (tmp_path / "here" / "blobs" / "sha256" / manifest.digest.hex).read_bytes() == manifest.raw
    assert "v1" in skopeo("list-tags", "--no-creds", "--tls-verify=false", skopeo.at(f"public/{name}"))
    for refused in (
        skopeo("copy", *stranger, hidden, f"oci:{tmp_path}/hidden:v1", check=False),
        skopeo("copy", "--dest-no-creds", "--dest-tls-verify=false", here, f"{image}-mine", check=False),
        skopeo("delete", "--no-creds", "--tls-verify=false", image, check=False),
    ):
        assert re.search("(?i)unauthorized|authentication required|is denied", refused), refused
    assert public_registry.call("GET", f"/v2/public/{name}/tags/list").json()["tags"] == ["v1"]
