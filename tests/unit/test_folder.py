"""Folder triggers: each file once, whole, and never what a function wrote."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from faas.errors import BadFunctionResponse, InvalidInput, NotFound, PayloadTooLarge
from faas.protocol import InvocationResult, Revision
from gateway.events import files, folder
from gateway.store.triggers import SeenFile
from tests.support.control import Control, control, until
from tests.support.fake_worker import FakeWorker


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "RECHECK_SECONDS", 0.1)
    monkeypatch.setattr(folder.FolderTriggers.__init__, "__kwdefaults__", {
        **(folder.FolderTriggers.__init__.__kwdefaults__ or {}), "settle_seconds": 0.25, "look_seconds": 0.5,
    })  # fmt: skip


class Photos:
    """A function that answers each photo with a thumbnail of its own."""

    def __init__(self, answer: Any = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.answer = answer

    async def __call__(self, revision: Revision, event: bytes) -> InvocationResult:
        record = json.loads(event)["Records"][0]
        self.events.append(record)
        name = record["s3"]["object"]["key"]
        content = base64.b64decode(record["faas"]["content_base64"])
        made = [
            {"name": f"{name.removesuffix('.jpg')}.thumb.jpg", "content_base64": base64.b64encode(content[:5]).decode()}
        ]
        return InvocationResult(json.dumps(self.answer or {"files": made}).encode())

    @property
    def names(self) -> list[str]:
        return sorted(record["s3"]["object"]["key"] for record in self.events)


def dirs(tmp_path: Path) -> tuple[Path, Path]:
    data, watched = tmp_path / "data", tmp_path / "photos"
    data.mkdir(exist_ok=True)
    watched.mkdir(exist_ok=True)
    return data, watched


async def deployed(server: Control, watched: Path, pattern: str = "*.jpg", **spec: Any) -> Any:
    return await server.deploy("photo", trigger=[{"watch": str(watched), "pattern": pattern}], **spec)


async def quiet() -> None:
    """Long enough for a file that should not run to have run."""
    await asyncio.sleep(1.0)


async def test_a_dropped_file_becomes_one_event_and_its_answer_a_file_beside_it(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos()
    async with control(data, FakeWorker(photos)) as server:
        (watched / "old.jpg").write_bytes(b"lay there before")
        await deployed(server, watched)
        (watched / "first.jpg").write_bytes(b"a photo's bytes")
        (watched / "notes.txt").write_text("not a photo")
        (watched / ".hidden.jpg").write_bytes(b"hidden")
        (watched / "folder.jpg").mkdir()
        (watched / "link.jpg").symlink_to("/etc/passwd")
        made = watched / "first.thumb.jpg"
        await until(made.exists)
        assert made.read_bytes() == b"a pho"
        await quiet()
        assert photos.names == ["first.jpg"]
        record = photos.events[0]
        assert base64.b64decode(record["faas"]["content_base64"]) == b"a photo's bytes"
        assert (record["eventSource"], record["s3"]["object"]["size"]) == ("aws:s3", 15)
        assert sorted(p.name for p in watched.iterdir() if p.name.startswith(".")) == [".hidden.jpg"]


async def test_files_that_came_during_downtime_are_caught_up_each_once(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    first = Photos()
    async with control(data, FakeWorker(first)) as server:
        await deployed(server, watched)
        (watched / "a.jpg").write_bytes(b"aaaaaa")
        await until((watched / "a.thumb.jpg").exists)
    (watched / "b.jpg").write_bytes(b"bbbbbb")
    second = Photos()
    async with control(data, FakeWorker(second)):
        await until((watched / "b.thumb.jpg").exists)
        await quiet()
    assert (first.names, second.names) == (["a.jpg"], ["b.jpg"])


async def test_a_file_is_read_when_its_writer_has_finished(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos()
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched)

        def opened() -> Any:
            return open(watched / "slow.jpg", "wb", buffering=0)

        with opened() as writer:
            for _ in range(12):
                writer.write(b"part.")
                await asyncio.sleep(0.04)
        await until(lambda: photos.events)
        await quiet()
        assert [record["s3"]["object"]["size"] for record in photos.events] == [60]


async def test_a_file_that_changes_is_a_new_event(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos({"files": []})
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched)
        (watched / "a.jpg").write_bytes(b"one")
        await until(lambda: len(photos.events) == 1)
        (watched / "a.jpg").write_bytes(b"other")
        await until(lambda: len(photos.events) == 2)
        await quiet()
        assert len(photos.events) == 2


async def test_a_folder_that_comes_later_is_watched_then(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    watched.rmdir()
    photos = Photos()
    async with control(data, FakeWorker(photos)) as server:
        assert "cannot be read" in (await deployed(server, watched))["warnings"][0]
        watched.mkdir()
        (watched / "a.jpg").write_bytes(b"aaaaaa")
        await until((watched / "a.thumb.jpg").exists)
        assert server.gateway.folders.problems("default", "photo") == []


async def test_a_removed_trigger_watches_no_more(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos()
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched)
        await server.deploy("photo")
        (watched / "a.jpg").write_bytes(b"a")
        await quiet()
        assert photos.events == []


async def test_an_answer_that_names_a_path_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos({"files": [{"name": "../escape.jpg", "content_base64": "AAAA"}]})
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched, **{"async": {"retries": 0, "on_failure": "dlq"}})
        (watched / "a.jpg").write_bytes(b"a")

        async def letters() -> Any:
            return (await server.call("GET", "/v1/dead-letters")).json()["dead_letters"]

        assert (await until(letters))[0]["error_type"] == "Function.InvalidResponse"
        assert not (tmp_path / "escape.jpg").exists()


# The files themselves


@contextmanager
def listed(watched: Path) -> Iterator[dict[str, SeenFile]]:
    yield {file.name: file for file in files.listing(str(watched), "*")}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc/x", ".hidden", "a\x00b", "a\nb", "x" * 256, "\udc80", 5, None]
)
def test_an_output_has_a_plain_name(name: object) -> None:
    answer = json.dumps({"files": [{"name": name, "content_base64": ""}]}).encode()
    with pytest.raises(BadFunctionResponse):
        files.outputs(answer)


@pytest.mark.parametrize("answer", [b"", b"null", b"[]", b"{", b'{"statusCode":200}', b'{"files":"x"}'])
def test_other_answers_make_no_files(answer: bytes) -> None:
    assert files.outputs(answer) == []


def test_contents_that_are_not_base64_and_floods_of_files_are_refused() -> None:
    with pytest.raises(BadFunctionResponse, match="base64"):
        files.outputs(b'{"files":[{"name":"a","content_base64":"!"}]}')
    many = [{"name": f"f{n}", "content_base64": ""} for n in range(files.OUTPUTS + 1)]
    with pytest.raises(BadFunctionResponse, match="more than"):
        files.outputs(json.dumps({"files": many}).encode())


def test_only_the_very_file_that_was_listed_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    with listed(tmp_path) as found:
        assert files.read(str(tmp_path), found["a"]) == b"one"
        (tmp_path / "a").write_bytes(b"changed")
        with pytest.raises(NotFound, match="changed"):
            files.read(str(tmp_path), found["a"])
        (tmp_path / "a").unlink()
        (tmp_path / "a").symlink_to("/etc/passwd")
        with pytest.raises(NotFound):
            files.read(str(tmp_path), found["a"])
        (tmp_path / "a").unlink()
        os.mkfifo(tmp_path / "a")
        with pytest.raises(NotFound):
            files.read(str(tmp_path), found["a"])
        with pytest.raises(PayloadTooLarge):
            files.read(str(tmp_path), SeenFile("a", 0, files.CONTENT_BYTES + 1))


def test_a_written_output_looks_as_it_was_foretold(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc/passwd")
    made = files.write_temporary(str(tmp_path), SeenFile("src", 0, 0), "id", [("out", b"content")])
    with listed(tmp_path) as found:
        assert found == {}  # hidden until it has its name
    files.publish(str(tmp_path), made)
    with listed(tmp_path) as found:
        assert found["out"] == made[0].file
    assert not (tmp_path / "out").is_symlink()
    assert Path("/etc/passwd").read_bytes() != b"content"


@pytest.mark.parametrize(
    "watch",
    ["/", "/etc", "/etc/x", "/proc/1", "/sys", "/dev", "/root", "/root/x", "/var/lib/faas", "/usr/share", "/run/x",
     "/srv/../etc", "/srv/x/", "//srv", "/home/me/.ssh", "relative"],
)  # fmt: skip
def test_system_folders_are_not_watched(watch: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        files.check_folder(watch, tmp_path / "data")


def test_the_servers_own_folder_and_links_into_forbidden_ones_are_not_watched(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "blobs").mkdir(parents=True)
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "inner").symlink_to(data)
    for watch in (data, data / "blobs", tmp_path / "link", tmp_path / "inner" / "blobs"):
        with pytest.raises(InvalidInput):
            files.check_folder(str(watch), data)
    files.check_folder(str(tmp_path / "photos"), data)
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    with pytest.raises(NotFound, match="symlink"):
        files.listing(str(tmp_path / "alias"), "*")
