"""Layouts and archives between `faas image` and other programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.commands import run
from tests.support.image_cli import (
    at,
    manifest,
    push_signature,
)
from tests.support.registry import RegistryProcess
from tests.support.samples import Samples


@pytest.mark.skopeo
@pytest.mark.umoci
def test_skopeo_and_umoci_read_what_is_exported(
    faas: CommandLine, source: RegistryProcess, target: RegistryProcess, tmp_path: Path
) -> None:
    samples = Samples()
    index = samples.index("amd64", "arm64")
    layout = samples.layout(tmp_path / "made", index)
    faas("image", "import", layout, "--repository", "read")
    digest = str(index.manifests[0].digest)
    push_signature(source, "read", digest, manifest(source, "read", digest))
    faas("image", "export", "read:v1", tmp_path / "layout")
    faas("image", "export", "read:v1", tmp_path / "layout.tar")
    for place in (f"oci:{tmp_path}/layout", f"oci-archive:{tmp_path}/layout.tar"):
        raw = run("skopeo", "--insecure-policy", "inspect", "--raw", f"{place}:read:v1")
        assert raw.encode() == index.raw
        to = f"docker://{target.host}/read:{place.partition(':')[0]}"
        run("skopeo", "--insecure-policy", "copy", "--all", "--dest-tls-verify=false", f"{place}:read:v1", to)
        assert manifest(target, "read", place.partition(":")[0]) == index.raw
    faas("image", "export", "read:v1", tmp_path / "one", "--platform", "linux/amd64")
    assert run("umoci", "ls", "--layout", str(tmp_path / "one")).split() == ["read:v1"]
    run("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/one:read:v1", str(tmp_path / "bundle"))
    assert len(list((tmp_path / "bundle/rootfs").iterdir())) == 2


@pytest.mark.skopeo
def test_what_skopeo_and_docker_write_is_imported(
    faas: CommandLine, source: RegistryProcess, target: RegistryProcess, tmp_path: Path
) -> None:
    samples = Samples()
    image = samples.image()
    made = samples.layout(tmp_path / "made", image)
    copy = ("skopeo", "--insecure-policy", "copy", f"oci:{made}:v1")
    run(*copy, f"oci:{tmp_path}/skopeo:stable")
    run(*copy, f"oci-archive:{tmp_path}/skopeo.tar:some/name:stable")
    run(*copy, f"docker-archive:{tmp_path}/docker.tar:saved/image:old")
    at(faas, target)
    refused = faas("image", "import", tmp_path / "skopeo", code=2)
    assert "'stable', without a repository" in refused.err
    assert "--repository NAME" in refused.err
    assert faas("image", "import", tmp_path / "skopeo", "--repository", "made/here").last_line == "made/here:stable"
    assert faas("image", "import", tmp_path / "skopeo.tar").last_line == "some/name:stable"
    assert manifest(target, "made/here", "stable") == manifest(target, "some/name", "stable") == image.raw
    assert faas("image", "import", tmp_path / "docker.tar").last_line == "saved/image:old"
    saved = json.loads(manifest(target, "saved/image", "old"))
    assert len(saved["layers"]) == 2
    config = json.loads(target.call("GET", f"/v2/saved/image/blobs/{saved['config']['digest']}").body)
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in saved["layers"]]


def test_an_archive_of_several_images_is_imported_whole(
    faas: CommandLine, target: RegistryProcess, tmp_path: Path
) -> None:
    samples = Samples()
    one, two = samples.image(), samples.image()
    names = {"docker.example/several/one:v1": one, "several/two:v1": two}
    (tmp_path / "saved.tar").write_bytes(samples.docker_archive(names))
    at(faas, target)
    done = faas("image", "import", tmp_path / "saved.tar")
    assert done.out.split() == ["several/one:v1", "several/two:v1"]
    assert [len(json.loads(manifest(target, f"several/{name}", "v1"))["layers"]) for name in ("one", "two")] == [2, 2]
