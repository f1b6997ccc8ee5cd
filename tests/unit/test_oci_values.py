"""OCI values: digests, references, descriptors, manifests, configs."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from faas.errors import ImageUnusable, InvalidInput
from faas.oci import media_types
from faas.oci.archive import open_image
from faas.oci.client import for_platform
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig, Manifest, chain_id
from faas.oci.reference import Reference

HEX = "a" * 64


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha512:{HEX}{HEX}"])
def test_a_digest_reads_as_it_is_written(text: str) -> None:
    assert str(Digest.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", HEX, f"sha256:{HEX[1:]}", f"sha256:{HEX.upper()}", f"md5:{HEX[:32]}", f"sha256:{HEX}/..", f"sha256:{HEX}\n"],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a sha256"):
        Digest.parse(text)


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("hello", "", "hello", "latest", False),
        ("team/hello:v1", "", "team/hello", "v1", False),
        ("localhost/hello", "localhost", "hello", "latest", False),
        ("127.0.0.1:5000/hello:v1", "127.0.0.1:5000", "hello", "v1", False),
        (f"hello@sha256:{HEX}", "", "hello", "", True),
        (f"reg.example/a/b:v@sha256:{HEX}", "reg.example", "a/b", "v", True),
    ],
)
def test_a_reference_is_taken_apart(text: str, host: str, repository: str, tag: str, digest: bool) -> None:
    found = Reference.parse(text)
    assert (found.host, found.repository, found.tag, found.digest is not None) == (host, repository, tag, digest)
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("localhost:5000/x", True),
        ("127.0.0.1:5000/x", True),
        ("[::1]:5000/x", True),
        ("localhost:5001/x", False),
        ("localhost/x", False),
        ("example.com:5000/x", False),
        ("x", False),
    ],
)
def test_a_registry_of_this_machine_has_several_names(text: str, same: bool) -> None:
    assert Reference.parse(text).is_at("127.0.0.1:5000") == same
    assert not Reference.parse(text).is_at("registry.example:5000")


@pytest.mark.parametrize("text", ["", "Upper", "a//b", "a:bad tag", "../x", f"hello@sha256:{HEX[1:]}", "a" * 256])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        Reference.parse(text)


def descriptor(**platform: str) -> Descriptor:
    where = (platform["os"], platform["architecture"], "") if platform else None
    return Descriptor(media_types.OCI_MANIFEST, Digest("sha256", HEX), 2, where)


def test_a_manifest_of_the_same_parts_has_the_same_digest() -> None:
    config = Descriptor(media_types.OCI_CONFIG, Digest("sha256", HEX), 2)
    first, second = (Manifest.image(config, [descriptor()], {"b": "1", "a": "2"}) for _ in range(2))
    assert first.raw == second.raw
    assert first.digest == Digest.of(first.raw)
    assert Manifest.parse(first.raw).layers == (descriptor(),)


@pytest.mark.parametrize(
    "change",
    [
        {"schemaVersion": 1},
        {"manifests": []},
        {"mediaType": "x/y"},
        {"layers": {}},
        {"config": []},
        {"annotations": [1]},
    ],
)
def test_what_is_no_manifest_is_refused(change: dict[str, object]) -> None:
    value: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": descriptor().to_json(),
        "layers": [],
    }
    Manifest.parse(json.dumps(value).encode())
    with pytest.raises(ValueError, match=r"."):
        Manifest.parse(json.dumps({**value, **change}).encode())


def test_a_config_keeps_what_running_needs() -> None:
    config = ImageConfig(
        "amd64",
        diff_ids=(Digest("sha256", HEX),),
        entrypoint=("/run",),
        cmd=("x",),
        env=("A=1",),
        workdir="/w",
        user="7",
    )
    assert ImageConfig.parse(config.to_json()) == config
    assert ImageConfig.parse(b'{"architecture":"arm64","config":{"Cmd":"echo hi"}}').cmd == ("/bin/sh", "-c", "echo hi")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"config": {"Entrypoint": [1]}}, "Entrypoint must be"),
        ({"config": {"Env": ["A=\x00"]}}, "Env must be"),
        ({"config": {"User": {"uid": 0}}}, "User must be"),
        ({"config": {"WorkingDir": ["/"]}}, "WorkingDir must be"),
        ({"config": {"WorkingDir": "/\x00"}}, "WorkingDir must be"),
        ({"config": {"ExposedPorts": [80, "x"]}}, "ExposedPorts must be"),
        ({"config": {"Labels": ["a"]}}, "Labels must be"),
        ({"config": {"Cmd": ["\ud800"]}}, "must be JSON"),
        ({"config": [1]}, "must be an object"),
        ({"rootfs": []}, "must be an object"),
        ({"rootfs": {"diff_ids": ["md5:00"]}}, "not a sha256"),
        ([], "must be an object"),
    ],
)
def test_a_config_of_another_form_is_refused(written: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ImageConfig.parse(json.dumps(written).encode())


def test_a_chain_id_of_one_layer_is_its_diff_id() -> None:
    one, two = Digest("sha256", HEX), Digest("sha256", "b" * 64)
    assert chain_id((one,)) == one
    assert chain_id((one, two)) == Digest.of(f"{one} {two}".encode())


def test_an_index_is_resolved_to_the_machine() -> None:
    entries = [descriptor(os="linux", architecture=a) for a in ("arm64", "amd64")]
    value = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [e.to_json() for e in entries]}
    index = Manifest.parse(json.dumps(value).encode())
    assert for_platform(index, "amd64").platform == ("linux", "amd64", "")
    with pytest.raises(ImageUnusable, match="linux/amd64, linux/arm64"):
        for_platform(index, "s390x")


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as target:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    return path


def test_a_docker_archive_is_read_and_its_layers_are_hashed(tmp_path: Path) -> None:
    layer = b"pretend this is a tar"
    manifest = [{"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l/layer.tar"]}]
    files = {"manifest.json": json.dumps(manifest).encode(), "c.json": b"{}", "l/layer.tar": layer}
    with open_image(archive(tmp_path / "x.tar", files)) as image:
        assert [row.digest for row in image.layers] == [Digest.of(layer)]
        with image.spooled(image.layers[0]) as spool:
            assert Path(spool.name).read_bytes() == layer


def test_an_oci_layout_whose_layer_lies_about_its_digest_is_refused(tmp_path: Path) -> None:
    config = ImageConfig("amd64").to_json()
    lying = Descriptor(media_types.OCI_LAYER, Digest("sha256", HEX), 5)
    manifest = Manifest.image(Descriptor(media_types.OCI_CONFIG, Digest.of(config), len(config)), [lying])
    index = {"schemaVersion": 2, "manifests": [manifest.descriptor().to_json()]}
    files = {
        "oci-layout": b"{}",
        "index.json": json.dumps(index).encode(),
        f"blobs/sha256/{manifest.digest.hex}": manifest.raw,
        f"blobs/sha256/{Digest.of(config).hex}": config,
        f"blobs/sha256/{HEX}": b"other",
    }
    with open_image(archive(tmp_path / "x.tar", files)) as image, pytest.raises(ImageUnusable, match="digest"):
        image.spooled(image.layers[0])


def layout(layer: bytes, told: Descriptor | None = None) -> dict[str, bytes]:
    """An OCI layout's files; `told` is what its manifest says of the layer."""
    config = ImageConfig("amd64").to_json()
    told = told or Descriptor(media_types.OCI_LAYER, Digest.of(layer), len(layer))
    manifest = Manifest.image(Descriptor(media_types.OCI_CONFIG, Digest.of(config), len(config)), [told])
    index = {"schemaVersion": 2, "manifests": [manifest.descriptor().to_json()]}
    blobs = {manifest.digest: manifest.raw, Digest.of(config): config, told.digest: layer}
    return {
        "oci-layout": b"{}",
        "index.json": json.dumps(index).encode(),
        **{f"blobs/{digest.algorithm}/{digest.hex}": data for digest, data in blobs.items()},
    }


def read_all(path: Path) -> list[bytes]:
    with open_image(path) as image:
        found = []
        for row in image.layers:
            with image.spooled(row) as spool:
                found.append(Path(spool.name).read_bytes())
        return found


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=lambda f: f.__module__)
def test_an_archive_that_is_cut_off_anywhere_is_refused(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    layer = random.Random(1).randbytes(9000)
    whole = archive(tmp_path / "x.tar", layout(layer)).read_bytes()
    data = compress(whole)
    path = tmp_path / "cut.tar"
    path.write_bytes(data)
    assert read_all(path) == [layer]
    end = len(data) if compress is not bytes else whole.index(layer) + len(layer)
    for length in range(0, end - 1024, 777):
        path.write_bytes(data[:length])
        with pytest.raises(InvalidInput):
            read_all(path)


@pytest.mark.parametrize("name", ["manifest", "config"])
def test_a_blob_of_a_layout_that_is_not_what_its_digest_says_is_refused(tmp_path: Path, name: str) -> None:
    files = layout(b"layer")
    blobs = [path for path in files if path.startswith("blobs/")]
    files[blobs[("manifest", "config").index(name)]] += b" "
    with pytest.raises(ImageUnusable, match="not what its digest says"):
        read_all(archive(tmp_path / "x.tar", files))


def test_a_layer_of_another_digest_algorithm_is_read(tmp_path: Path) -> None:
    told = Descriptor(media_types.OCI_LAYER, Digest.of(b"layer", "sha512"), 5)
    assert read_all(archive(tmp_path / "x.tar", layout(b"layer", told))) == [b"layer"]


def test_a_layer_is_read_no_further_than_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Descriptor(media_types.OCI_LAYER, Digest.of(b"layer"), 4)
    with pytest.raises(InvalidInput, match="larger than 4 bytes"):
        read_all(archive(tmp_path / "x.tar", layout(b"layer", told)))
    monkeypatch.setattr("faas.oci.archive.LAYER_BYTES", 3)
    with pytest.raises(InvalidInput, match="larger than 3 bytes"):
        read_all(archive(tmp_path / "y.tar", layout(b"layer")))
    saved = {"manifest.json": b'[{"Config": "c", "Layers": ["l"]}]', "c": b"{}", "l": b"layer"}
    with pytest.raises(InvalidInput, match="larger than 3 bytes"):
        open_image(archive(tmp_path / "z.tar", saved))


@pytest.mark.parametrize("files", [{}, {"manifest.json": b"[]"}, {"manifest.json": b"nonsense"}, {"other": b""}])
def test_what_is_no_image_archive_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInput):
        open_image(archive(tmp_path / "x.tar", files))
