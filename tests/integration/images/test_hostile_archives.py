"""Archives made to harm who imports them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from faas.oci import media_types
from tests.support.cli import CommandLine
from tests.support.image_cli import (
    REF_NAME,
    at,
    rewritten,
    tags,
)
from tests.support.registry import RegistryProcess
from tests.support.samples import Samples

Harm = Callable[[Path, Path], object]  # the layout's folder, and the file of a layer


def new_manifest(layout: Path, raw: bytes, media_type: str = media_types.OCI_MANIFEST) -> None:
    """index.json names these bytes instead."""
    digest = hashlib.sha256(raw).hexdigest()
    (layout / "blobs/sha256" / digest).write_bytes(raw)
    row = {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(raw)}
    row["annotations"] = {REF_NAME: "harm:v1"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [row]}))


def link_out(layout: Path, layer: Path) -> None:
    outside = layout.parent / "secret"
    layer.rename(outside)
    layer.symlink_to(outside)


def fifo(layout: Path, layer: Path) -> None:
    layer.unlink()
    os.mkfifo(layer)


def device(layout: Path, layer: Path) -> None:
    layer.unlink()
    layer.symlink_to("/dev/zero")


def sparse(layout: Path, layer: Path) -> None:
    with layer.open("ab") as file:
        file.truncate(1 << 40)


def itself(layout: Path, layer: Path) -> None:
    digest = "ab" * 32
    row = {"mediaType": media_types.OCI_INDEX, "digest": f"sha256:{digest}", "size": 300}
    value = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [row]}
    raw = json.dumps(value).encode().ljust(300)
    (layout / "blobs/sha256" / digest).write_bytes(raw)
    new_manifest(layout, raw, media_types.OCI_INDEX)


def nested(layout: Path, layer: Path) -> None:
    index = json.loads((layout / "index.json").read_text())["manifests"][0]
    row = {key: index[key] for key in ("mediaType", "digest", "size")}
    for _ in range(20):
        raw = json.dumps({"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [row]}).encode()
        new_manifest(layout, raw, media_types.OCI_INDEX)
        row = {
            "mediaType": media_types.OCI_INDEX,
            "digest": f"sha256:{hashlib.sha256(raw).hexdigest()}",
            "size": len(raw),
        }


HARMS: dict[str, tuple[Harm, str]] = {
    "a link out of the folder": (link_out, "is missing"),
    "a pipe": (fifo, "is missing"),
    "a device": (device, "is missing"),
    "a file of a terabyte": (sparse, "should have"),
    "other bytes": (lambda _, layer: layer.write_bytes(b"\0" * layer.stat().st_size), "not what its digest says"),
    "a shorter file": (lambda _, layer: os.truncate(layer, 10), "should have"),
    "a blob that is not there": (lambda _, layer: layer.unlink(), "is missing"),
    "a wrong size in index.json": (lambda f, _: rewritten(f, lambda row: row.update(size=7)), "is named with 7 bytes"),
    "a digest that leads away": (
        lambda f, _: rewritten(f, lambda row: row.update(digest="sha256:../../../../etc/shadow")),
        "not a sha256",
    ),
    "a name that is none": (
        lambda f, _: rewritten(f, lambda row: row.update(annotations={REF_NAME: "../up:v1"})),
        "the archive's name",
    ),
    "the name of a runtime base": (
        lambda f, _: rewritten(f, lambda row: row.update(annotations={REF_NAME: "runtime/python:3.12"})),
        "one of the runtime bases",
    ),
    "an index that names itself": (itself, "not what its digest says"),
    "indexes in indexes": (nested, "nested more than"),
    "a manifest of a wrong type": (lambda f, _: new_manifest(f, b"{}"), "schemaVersion"),
    "json without an end": (lambda f, _: (f / "index.json").write_text("[" * 100_000), "no valid image archive"),
    "an index.json of 5 MB": (lambda f, _: (f / "index.json").write_text(" " * (5 << 20)), "larger than"),
    "an index.json that is a list": (lambda f, _: (f / "index.json").write_text("[1, 2]"), "no valid image archive"),
    "an index.json that is a pipe": (
        lambda f, _: ((f / "index.json").unlink(), os.mkfifo(f / "index.json"))[1],
        "has no file manifest.json",
    ),
    "no image": (lambda f, _: (f / "index.json").write_text('{"manifests": []}'), "holds no image"),
}


UNUSABLE = ("should have", "not what its digest says", "is named with 7 bytes", "nested more than", "schemaVersion")


@pytest.mark.parametrize("harm", HARMS)
def test_a_layout_that_lies_is_refused_and_changes_no_tag(
    faas: CommandLine, target: RegistryProcess, tmp_path: Path, harm: str
) -> None:
    samples = Samples()
    image = samples.image()
    layout = samples.layout(tmp_path / "layout", image, "harm:v1")
    apply, words = HARMS[harm]
    apply(layout, layout / "blobs/sha256" / image.layers[1].digest.hex)
    at(faas, target)
    began = time.monotonic()
    done = faas("image", "import", layout, code=1 if words in UNUSABLE else 2)
    assert words in done.err
    assert done.out == ""
    assert time.monotonic() - began < 10
    assert tags(target, "harm") == []


def loop_of_links(archive: tarfile.TarFile) -> None:
    for name, to in (("index.json", "oci-layout"), ("oci-layout", "index.json"), ("manifest.json", "index.json")):
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, to
        archive.addfile(entry)


def long_header(archive: tarfile.TarFile) -> None:
    """A header about the next member that says it has 4 GB: a sparse file is a cheap one."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, 4 << 30
    assert archive.fileobj is not None
    archive.fileobj.write(entry.tobuf(tarfile.USTAR_FORMAT))
    os.ftruncate(archive.fileobj.fileno(), 4 << 30)  # type: ignore[attr-defined]


def no_size(archive: tarfile.TarFile) -> None:
    """A member of 2⁷⁰ bytes, as GNU tar writes large numbers."""
    entry = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    entry[124:136] = b"\x80" + (1 << 70).to_bytes(11, "big")
    entry[148:156] = b" " * 8
    entry[148:156] = b"%06o\0 " % sum(entry)
    assert archive.fileobj is not None
    archive.fileobj.write(bytes(entry))


def sparse_without_a_map(archive: tarfile.TarFile) -> None:
    entry = tarfile.TarInfo("x")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}
    entry.size = 512
    archive.addfile(entry, io.BytesIO(b"9" * 512))


def words_for_a_terminal(archive: tarfile.TarFile) -> None:
    manifest = json.dumps([{"Config": "\x1b]0;owned\x07", "Layers": []}]).encode()
    entry = tarfile.TarInfo("manifest.json")
    entry.size = len(manifest)
    archive.addfile(entry, io.BytesIO(manifest))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (loop_of_links, "has no file"),
        (long_header, "a header of"),
        (no_size, "damaged or cut off"),
        (sparse_without_a_map, "no image archive"),
        (words_for_a_terminal, r"has no file '\x1b]0;owned\x07'"),
    ],
)
def test_a_tar_file_that_lies_is_refused(
    faas: CommandLine, tmp_path: Path, harm: Callable[[tarfile.TarFile], None], words: str
) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        harm(archive)
    done = faas("image", "import", tmp_path / "x.tar", code=2)
    assert words in done.err


def test_a_pipe_is_not_waited_for(faas: CommandLine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    assert "not a file" in faas("image", "import", tmp_path / "x.tar", code=2).err
