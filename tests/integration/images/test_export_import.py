"""`faas image export` and `import`: what goes out comes back, byte for byte and with its names."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from faas.oci import media_types
from tests.support.cli import CommandLine
from tests.support.commands import run
from tests.support.image_cli import (
    REF_NAME,
    SIGNATURE,
    at,
    check_blobs,
    manifest,
    push_index,
    push_signature,
    rewritten,
    tags,
)
from tests.support.registry import RegistryProcess, registry_process
from tests.support.samples import Samples


@pytest.mark.parametrize("form", ["folder", "x.tar", "x.tar.gz"])
def test_what_is_exported_is_imported_byte_for_byte_with_its_platforms_and_signatures(
    faas: CommandLine, source: RegistryProcess, tmp_path: Path, form: str
) -> None:
    repository = f"team/{form.replace('.', '-')}"
    made = push_index(source, repository, "v1")
    signature = push_signature(source, repository, *made["arm64"])
    companion, _ = source.push_image(repository, made[""][0].replace(":", "-") + ".sig", b"cosign's")
    path = tmp_path / form.removesuffix(".gz")
    done = faas("image", "export", f"{repository}:v1", path)
    assert done.last_line == str(path)
    assert f"{repository}:v1" in done.err
    assert len(check_blobs(path)) == 2 + 5 + 5  # version, index; manifests; layers and the config that all have
    if form.endswith(".gz"):
        path = tmp_path / form
        path.write_bytes(gzip.compress((tmp_path / form.removesuffix(".gz")).read_bytes()))
    with registry_process(tmp_path / "fresh") as fresh:
        at(faas, fresh)
        done = faas("image", "import", path)
        assert done.last_line == f"{repository}:v1"
        assert manifest(fresh, repository, "v1") == made[""][1]
        for digest, raw in made.values():
            assert manifest(fresh, repository, digest) == raw
        assert set(tags(fresh, repository)) == {"v1", made[""][0].replace(":", "-") + ".sig"}
        found = fresh.call("GET", f"/v2/{repository}/referrers/{made['arm64'][0]}").json()["manifests"]
        assert [(row["digest"], row["artifactType"]) for row in found] == [(signature, SIGNATURE)]
        assert manifest(fresh, repository, companion)
        layer = json.loads(made["amd64"][1])["layers"][0]["digest"]
        assert fresh.call("GET", f"/v2/{repository}/blobs/{layer}").body == b"v1 amd64"


def test_two_exports_of_the_same_are_the_same_file(faas: CommandLine, source: RegistryProcess, tmp_path: Path) -> None:
    source.push_image("same", "v1", os.urandom(300_000))
    source.push_image("same", "v2", os.urandom(300_000))
    for name in ("a.tar", "b.tar"):
        faas("image", "export", "same:v1", "same:v2", tmp_path / name)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    listed = [line.split()[-1] for line in run("tar", "-tvf", str(tmp_path / "a.tar")).splitlines()]
    assert sorted(listed) == sorted(check_blobs(tmp_path / "a.tar"))


def test_a_layout_is_added_to_and_only_what_it_lacks_is_fetched(
    faas: CommandLine, source: RegistryProcess, tmp_path: Path
) -> None:
    shared = os.urandom(50_000)
    first, _ = source.push_image("grow", "v1", shared)
    source.push_image("grow", "v2", shared, annotations={"second": "one"})
    layout = tmp_path / "layout"
    faas("image", "export", "grow:v1", layout)
    foreign = {"mediaType": media_types.OCI_MANIFEST, "digest": first, "size": 3, "mine": [1, 2]}
    index = json.loads((layout / "index.json").read_text())
    index["manifests"].append(foreign)
    index["annotations"] = {"kept": "yes"}
    (layout / "index.json").write_text(json.dumps(index))
    for _ in range(2):
        done = faas("image", "export", "grow:v2", layout)
    assert "5 already there" not in done.err
    assert "3 already there" in done.err  # manifest, config, layer
    found = json.loads((layout / "index.json").read_text())
    assert [row.get("annotations", {}).get(REF_NAME) for row in found["manifests"]] == ["grow:v1", None, "grow:v2"]
    assert foreign in found["manifests"]
    assert found["annotations"] == {"kept": "yes"}
    # A tag that moved names what it names now.
    source.push_image("grow", "v2", b"moved")
    faas("image", "export", "grow:v2", layout)
    assert len(json.loads((layout / "index.json").read_text())["manifests"]) == 3
    check_blobs(layout)


def test_a_blob_that_is_damaged_in_a_layout_is_fetched_again(
    faas: CommandLine, source: RegistryProcess, tmp_path: Path
) -> None:
    _, raw = source.push_image("repair", "v1", b"x" * 1000)
    layout = tmp_path / "layout"
    faas("image", "export", "repair:v1", layout)
    layer = layout / "blobs/sha256" / json.loads(raw)["layers"][0]["digest"].partition(":")[2]
    for damage in (b"y" * 1000, b"x" * 999):
        layer.write_bytes(damage)
        faas("image", "export", "repair:v1", layout)
        assert layer.read_bytes() == b"x" * 1000
    layer.unlink()
    os.mkfifo(layer)
    faas("image", "export", "repair:v1", layout)
    assert layer.read_bytes() == b"x" * 1000


def test_one_platform_is_taken_by_name(faas: CommandLine, source: RegistryProcess, tmp_path: Path) -> None:
    made = push_index(source, "platforms", "v1")
    push_signature(source, "platforms", *made["arm64"])
    faas("image", "export", "platforms:v1", tmp_path / "arm.tar", "--platform", "linux/arm64", "--no-referrers")
    found = check_blobs(tmp_path / "arm.tar")
    assert len(found) == 2 + 3
    [row] = json.loads(found["index.json"])["manifests"]
    assert (row["digest"], row["annotations"][REF_NAME]) == (made["arm64"][0], "platforms:v1")
    done = faas("image", "export", "platforms:v1", tmp_path / "s390.tar", "--platform", "linux/s390x", code=1)
    assert "linux/amd64, linux/arm64" in done.err
    # A single image is for one platform too.
    faas("image", "export", "platforms:v1-amd64", tmp_path / "one.tar", "--platform", "linux/amd64")
    done = faas("image", "export", "platforms:v1-amd64", tmp_path / "two.tar", "--platform", "linux/arm64", code=1)
    assert "it is for linux/amd64" in done.err
    faas("image", "export", "platforms:v1", tmp_path / "x.tar", "--platform", "arm64", code=2)
    assert sorted(p.name for p in tmp_path.glob("*.tar")) == ["arm.tar", "one.tar"]


def test_an_image_named_by_its_digest_comes_back_by_it(
    faas: CommandLine, source: RegistryProcess, target: RegistryProcess, tmp_path: Path
) -> None:
    digest, raw = source.push_image("pinned", "v1", b"pinned")
    faas("image", "export", f"{source.host}/pinned@{digest}", tmp_path / "x.tar")
    at(faas, target)
    assert faas("image", "import", tmp_path / "x.tar").last_line == f"pinned@{digest}"
    assert manifest(target, "pinned", digest) == raw
    assert tags(target, "pinned") == []


def test_a_blob_of_two_repositories_is_uploaded_once(
    faas: CommandLine, source: RegistryProcess, target: RegistryProcess, tmp_path: Path
) -> None:
    layer = os.urandom(200_000)
    for name in ("one/x", "two/x"):
        source.push_image(name, "v1", layer)
    faas("image", "export", "one/x:v1", "two/x:v1", tmp_path / "layout")
    at(faas, target)
    done = faas("image", "import", tmp_path / "layout")
    assert done.out.splitlines() == ["one/x:v1", "two/x:v1"]
    assert "195 KB" in done.err
    again = faas("image", "import", tmp_path / "layout")
    assert "2 already there" in again.err
    assert manifest(target, "two/x", "v1") == manifest(source, "one/x", "v1")


def test_names_can_be_given_at_import(
    faas: CommandLine, source: RegistryProcess, target: RegistryProcess, tmp_path: Path
) -> None:
    digest, raw = source.push_image("named", "v1", b"named")
    signature = push_signature(source, "named", digest, raw)
    companion = digest.replace(":", "-") + ".sig"
    source.push_image("named", companion, b"cosign's")
    source.push_image("named", "v2", b"another")
    faas("image", "export", "named:v1", tmp_path / "one")
    faas("image", "export", "named:v1", "named:v2", tmp_path / "two")
    at(faas, target)
    done = faas("image", "import", tmp_path / "one", "--repository", "renamed", "--tag", "new")
    assert done.last_line == "renamed:new"
    assert sorted(tags(target, "renamed")) == sorted(["new", companion])
    found = target.call("GET", f"/v2/renamed/referrers/{digest}").json()["manifests"]
    assert [row["digest"] for row in found] == [signature]
    done = faas("image", "import", tmp_path / "two", "--tag", "new", code=2)
    assert "two images of the archive would be named:new" in done.err
    faas("image", "import", tmp_path / "one", "--repository", "No Name", code=2)
    faas("image", "import", tmp_path / "one", "--tag", "no tag", code=2)


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({REF_NAME: "a/b:v1"}, "a/b:v1"),
        ({REF_NAME: "host.example:5000/a/b:v1"}, "a/b:v1"),
        ({REF_NAME: "v1", "io.containerd.image.name": "docker.io/library/b:v1"}, "library/b:v1"),
        ({REF_NAME: "v1"}, ""),
        ({}, ""),
    ],
    ids=["repository and tag", "with a host", "a builder's", "only a tag", "none"],
)
def test_names_are_read_as_different_programs_write_them(
    faas: CommandLine, target: RegistryProcess, tmp_path: Path, annotations: dict[str, str], name: str
) -> None:
    samples = Samples()
    image = samples.image()
    layout = samples.layout(tmp_path / "layout", image)
    rewritten(layout, lambda row: row.update(annotations=annotations))
    at(faas, target)
    done = faas("image", "import", layout, code=0 if name else 2)
    if name:
        assert done.last_line == name
        return
    assert "--repository NAME" in done.err
    done = faas("image", "import", layout, "--repository", "x/y", code=0 if annotations else 2)
    assert "x/y:v1" in done.out if annotations else "--tag TAG" in done.err
    assert faas("image", "import", layout, "--repository", "x/y", "--tag", "v2").last_line == "x/y:v2"


def test_an_exported_image_with_its_signature_can_be_pushed_as_a_function(
    faas: CommandLine, source: RegistryProcess, tmp_path: Path
) -> None:
    digest, raw = source.push_image("signed", "v1", b"signed")
    push_signature(source, "signed", digest, raw)
    for path in (tmp_path / "layout", tmp_path / "layout.tar"):
        faas("image", "export", "signed:v1", path)
        done = faas("push", "--image", path, "--name", "pushed", "--no-deploy")
        assert done.last_line.startswith(f"{source.host}/pushed@sha256:")
    assert json.loads(manifest(source, "pushed", "latest"))["layers"] == json.loads(raw)["layers"]
