"""What an ordinary layer becomes on disk: owners, modes, times, links, and what it takes over from layers below."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import secrets
import shutil
import stat
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
import zstandard

from faas.errors import ImageUnusable, Unavailable
from faas.oci.descriptor import Descriptor
from faas.oci.platform import architecture
from tests.integration.test_hostile_layers import archive, entry
from tests.support.images import MemoryImages, tar_of
from tests.support.processes import children
from worker.layers.store import LayerStore
from worker.layers.unpacker import Unpacker, UnpackLimits

pytestmark = pytest.mark.root

LIMITS = UnpackLimits(bytes=16 << 20, entries=1000, depth=50, seconds=10)


def lay(folder: Path, data: bytes, *lowers: Path) -> Path:
    """Unpack `data` into the new `folder`, above `lowers` (the top one first)."""
    folder.mkdir()
    blob = folder.with_suffix(".blob")
    blob.write_bytes(data)
    with blob.open("rb") as file:
        Unpacker().unpack(file, folder, LIMITS, lowers=lowers)
    return folder


def test_owners_modes_and_times_are_kept(tmp_path: Path) -> None:
    file, content = entry("d/f", content=b"x", mode=0o640)
    folder, _ = entry("d", tarfile.DIRTYPE, mode=0o750)
    for info in (file, folder):
        info.uid, info.gid, info.mtime = 1001, 1002, 1_000_000_000
    root = lay(tmp_path / "one", archive((folder, b""), (file, content)))
    for path, mode in ((root / "d", 0o750), (root / "d/f", 0o640)):
        found = path.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1001, 1002, mode)
        assert found.st_mtime == 1_000_000_000


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
def test_all_three_forms_are_read(tmp_path: Path, compress: object) -> None:
    data = compress(archive(entry("f", content=b"x" * 70_000)))  # type: ignore[operator]
    assert (lay(tmp_path / "one", data) / "f").read_bytes() == b"x" * 70_000


def test_links_within_a_layer_work(tmp_path: Path) -> None:
    data = archive(
        entry("a", content=b"1"),
        entry("hard", tarfile.LNKTYPE, link="a"),
        entry("soft", tarfile.SYMTYPE, link="/etc/shadow"),
        entry("usr/lib", tarfile.DIRTYPE, mode=0o755),
        entry("lib", tarfile.SYMTYPE, link="usr/lib"),
        entry("lib/x", content=b"through the link"),
        entry("up", tarfile.SYMTYPE, link="usr/../../../usr/lib"),
        entry("up/y", content=b"clamped at the root"),
    )
    root = lay(tmp_path / "one", data)
    assert (root / "hard").stat().st_ino == (root / "a").stat().st_ino
    assert (root / "soft").readlink() == Path("/etc/shadow")
    assert (root / "usr/lib/x").read_bytes() == b"through the link"
    assert (root / "usr/lib/y").read_bytes() == b"clamped at the root"


def test_links_that_go_round_are_refused(tmp_path: Path) -> None:
    data = archive(
        entry("a", tarfile.SYMTYPE, link="b"), entry("b", tarfile.SYMTYPE, link="a"), entry("a/x", content=b"x")
    )
    with pytest.raises(ImageUnusable, match="too many links"):
        lay(tmp_path / "one", data)


def test_a_hard_link_to_a_file_of_a_lower_layer_is_a_copy(tmp_path: Path) -> None:
    bottom = lay(tmp_path / "bottom", archive(entry("bin/tool", content=b"tool", mode=0o755)))
    middle = lay(tmp_path / "middle", archive(entry("other", content=b"o")), bottom)
    top = lay(tmp_path / "top", archive(entry("bin/alias", tarfile.LNKTYPE, link="bin/tool")), middle, bottom)
    assert (top / "bin/alias").read_bytes() == b"tool"
    assert stat.S_IMODE((top / "bin/alias").stat().st_mode) == 0o755
    assert not (top / "bin/tool").exists()


@pytest.mark.parametrize("hiding", [".wh.tool", ".wh..wh..opq"])
def test_a_hard_link_does_not_reach_what_a_layer_between_has_hidden(tmp_path: Path, hiding: str) -> None:
    bottom = lay(tmp_path / "bottom", archive(entry("bin/tool", content=b"tool")))
    middle = lay(tmp_path / "middle", archive(entry(f"bin/{hiding}")), bottom)
    with pytest.raises(ImageUnusable, match="points to nothing"):
        lay(tmp_path / "top", archive(entry("alias", tarfile.LNKTYPE, link="bin/tool")), middle, bottom)


def test_a_hard_link_to_a_link_of_a_lower_layer_does_not_follow_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host")
    links = archive(entry("s", tarfile.SYMTYPE, link="/etc/shadow"), entry("d", tarfile.SYMTYPE, link=str(tmp_path)))
    bottom = lay(tmp_path / "bottom", links)
    top = lay(tmp_path / "top", archive(entry("h", tarfile.LNKTYPE, link="s")), bottom)
    assert (top / "h").readlink() == Path("/etc/shadow")
    with pytest.raises(ImageUnusable, match="points to nothing"):
        lay(tmp_path / "more", archive(entry("h", tarfile.LNKTYPE, link="d/secret")), bottom)


def test_parents_that_are_not_named_stay_as_they_are_below(tmp_path: Path) -> None:
    folder, _ = entry("private", tarfile.DIRTYPE, mode=0o700)
    folder.uid, folder.gid = 1001, 1002
    bottom = lay(tmp_path / "bottom", archive((folder, b"")))
    top = lay(tmp_path / "top", archive(entry("private/f", content=b"x"), entry("new/f", content=b"x")), bottom)
    found = (top / "private").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1001, 1002, 0o700)
    assert stat.S_IMODE((top / "new").stat().st_mode) == 0o755


def test_a_folder_that_became_something_else_is_not_made_again(tmp_path: Path) -> None:
    data = archive(entry("d", tarfile.DIRTYPE, mode=0o755), entry("d/e", tarfile.DIRTYPE, mode=0o755), entry(".wh.d"))
    assert stat.S_ISCHR((lay(tmp_path / "one", data) / "d").lstat().st_mode)


def test_extended_attributes_of_an_archive_are_not_taken_over(tmp_path: Path) -> None:
    info, content = entry("f", content=b"x")
    info.pax_headers = {"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.security.capability": "x"}
    root = lay(tmp_path / "one", archive((info, content)))
    assert os.listxattr(root / "f") == []


def test_the_child_can_be_started_by_any_interpreter_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tarfile.py").write_text("raise SystemExit('hijacked')")
    assert (lay(tmp_path / "one", archive(entry("f", content=b"x"))) / "f").exists()


@contextlib.contextmanager
def store(root: Path, images: MemoryImages, limits: UnpackLimits = LIMITS) -> Iterator[LayerStore]:
    with ThreadPoolExecutor(2) as threads:
        made = LayerStore(
            root / "layers", root / f"links-{secrets.token_hex(2)}", images, architecture(), threads, limits
        )
        made.open()
        yield made


async def test_the_layers_of_an_image_share_one_limit(tmp_path: Path) -> None:
    limits, images = replace(LIMITS, bytes=1 << 20), MemoryImages()
    layers = [tar_of({str(n): bytes([n]) * (400 << 10)}) for n in range(3)]
    fits, does_not = images.add("fits", layers[:2], compress=True), images.add("does-not", layers, compress=True)
    for _ in range(2):  # also where a server finds the first two unpacked already
        with store(tmp_path, images, limits) as made:
            assert len((await made.image(fits)).layers) == 2
            with pytest.raises(ImageUnusable, match="more than the 229376 bytes that its image may still have"):
                await made.image(does_not)


async def test_a_note_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    images = MemoryImages()
    reference = images.add("x", [tar_of({"f": b"x" * 1000})])
    with store(tmp_path, images) as made:
        await made.image(reference)
        (note,) = (tmp_path / "layers/blobs").iterdir()
        assert note.read_text() == "1000"
        note.write_text("")  # as power loss may leave it
        await made.image(reference)
        assert note.read_text() == "1000"


async def test_what_is_being_unpacked_ends_with_the_store(tmp_path: Path) -> None:
    images = MemoryImages()
    reference = images.add("x", [tar_of({"f": b"x"})])
    (blob,) = (d for d in images.blobs if images.blobs[d].startswith(b"f\0"))
    reading, writing = os.pipe()  # a layer that never comes to its end
    original = images.open_blob

    async def slow(repository: str, descriptor: Descriptor) -> BinaryIO:
        return os.fdopen(reading, "rb") if descriptor.digest == blob else await original(repository, descriptor)

    images.open_blob = slow  # type: ignore[method-assign]
    began = time.monotonic()
    with store(tmp_path, images) as made:
        task = asyncio.create_task(made.image(reference))
        while not (begun := _children()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await made.close()
        with pytest.raises(Unavailable, match="stopping"):
            await task
        assert begun & _children() == set()
        with pytest.raises(Unavailable, match="stopping"):  # and nothing begins any more
            await made.image(images.add("y", [tar_of({"g": b"y"})]))
    assert time.monotonic() - began < LIMITS.seconds / 2
    assert list((tmp_path / "layers/tmp").iterdir()) == []
    os.close(writing)


def _children() -> set[int]:
    return set(children(os.getpid(), "worker.layers.unpack"))


async def test_what_is_collected_is_unpacked_again_and_what_is_kept_or_wanted_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = MemoryImages()
    kept, gone = (images.add("f", [tar_of({"same": b"1"}), tar_of({name: b"2" * 9000})]) for name in ("kept", "gone"))
    with store(tmp_path, images) as layers:
        before = await layers.image(gone)
        stays = await layers.image(kept)
        assert await layers.collect([]) == 0  # all of it was wanted just now
        monkeypatch.setattr("worker.layers.store.WANTED_SECONDS", 0.0)
        _, names = await layers.names(kept)
        assert await layers.collect(names) > 8000
        assert not before.layers[1].exists()
        assert (stays.layers[0] / "same").read_bytes() == b"1"
        assert (stays.layers[1] / "kept").exists()
        after = await layers.image(gone)
        assert (after.layers[1] / "gone").exists()
        assert after.layers[1] != before.layers[1]  # a short name never means another layer


async def test_a_layer_that_is_wanted_while_others_are_being_removed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = MemoryImages()
    references = [images.add(name, [tar_of({name: b"1" * 9000})]) for name in ("one", "two", "three")]
    with store(tmp_path, images) as layers:
        found = {reference: (await layers.image(reference)).layers[0].resolve() for reference in references}
        monkeypatch.setattr("worker.layers.store.WANTED_SECONDS", 60.0)
        layers._wanted_at.clear()  # an hour has gone by
        removed, go_on = threading.Event(), threading.Event()
        original = shutil.rmtree

        def slow(path: Path, *, ignore_errors: bool = False) -> None:
            removed.set()
            go_on.wait(10)
            original(path, ignore_errors=ignore_errors)

        monkeypatch.setattr("worker.layers.store.shutil.rmtree", slow)
        collection = asyncio.create_task(layers.collect([]))
        await asyncio.to_thread(removed.wait, 10)
        left = [reference for reference, folder in found.items() if folder.exists()]
        wanted = await layers.image(left[0])
        go_on.set()
        await collection
        assert len(left) == 2
        assert wanted.layers[0].resolve() == found[left[0]]
        assert wanted.layers[0].exists()
        assert not found[left[1]].exists()
