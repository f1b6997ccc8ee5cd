"""Folder triggers: each file once, whole, and never what a function wrote."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.event import listen

from faas.errors import BadFunctionResponse, InvalidInput, NotFound, PayloadTooLarge, Unavailable
from faas.leases import InvocationResult, Trigger
from faas.protocol import (
    Revision,
)
from faas.state.session import Tx
from gateway.events import files, folder
from gateway.events.roots import TriggerRoots
from gateway.store import triggers
from gateway.store.invocations import Kind, QueuedEvent
from gateway.store.triggers import SeenFile, TriggerRow
from tests.support.control import DIGEST, Control, control, until
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


async def deployed(server: Control, watched: Path, pattern: str = "*.jpg", /, **spec: Any) -> Any:
    return await server.deploy("photo", trigger=[{"watch": str(watched), "pattern": pattern}], **spec)


async def letters(server: Control) -> list[dict[str, Any]]:
    return list((await server.call("GET", "/v1/dead-letters")).json()["dead_letters"])


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
        await until(lambda: not server.gateway.dispatcher.running)  # its outcome is stored
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
        assert server.gateway.folders.problems() == {}


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
        assert (await until(lambda: letters(server)))[0]["error_type"] == "Function.InvalidResponse"
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


def roots(data: Path, *allowed: str | Path) -> TriggerRoots:
    return TriggerRoots(tuple(map(Path, allowed)), data)


@pytest.mark.parametrize(
    "watch",
    ["/", "/etc", "/etc/x", "/proc/1", "/root", "/var/lib/faas", "/usr/share", "/home/alice", "/var/www", "/tmp",
     "/opt", "/mnt/scans", "/srvx", "/srv/../etc", "/srv/x/", "//srv", "/srv/me/.ssh", "relative"],
)  # fmt: skip
def test_only_folders_below_the_roots_are_watched(watch: str, tmp_path: Path) -> None:
    allowed = roots(tmp_path / "data", "/srv")
    with pytest.raises(InvalidInput):
        allowed.check(watch)
    allowed.check("/srv")
    allowed.check("/srv/photos/in")


def test_the_refusal_names_the_setting_and_where_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not below trigger_roots, which is /srv:/mnt") as caught:
        roots(tmp_path, "/srv", "/mnt").check("/home/alice")
    for place in (f"{tmp_path}/config.toml", "FAAS_TRIGGER_ROOTS", "--trigger-roots"):
        assert place in caught.value.hint
    with pytest.raises(InvalidInput, match="trigger_roots, which is empty"):
        roots(tmp_path).check("/srv")


def test_symlinks_count_as_where_they_lead(tmp_path: Path) -> None:
    opened, outside = tmp_path / "opened", tmp_path / "outside"
    opened.mkdir()
    outside.mkdir()
    (opened / "out").symlink_to(outside)
    (tmp_path / "root").symlink_to(opened)
    with pytest.raises(InvalidInput, match="outside"):
        roots(tmp_path / "data", opened).check(str(opened / "out"))
    roots(tmp_path / "data", tmp_path / "root").check(str(opened / "in"))
    with pytest.raises(NotFound, match="symlink"):
        files.listing(str(tmp_path / "root"), "*")


def test_the_servers_data_and_its_installation_are_never_watched_nor_what_holds_them(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "blobs").mkdir(parents=True)
    (tmp_path / "inner").symlink_to(data)
    code = Path(files.__file__).resolve().parents[2]
    own = (data, data / "blobs", tmp_path, tmp_path / "inner" / "blobs", sys.prefix, f"{sys.prefix}/bin", code)
    for watch in own:
        with pytest.raises(InvalidInput, match="the server itself lies there"):
            roots(data, "/").check(str(watch))
    roots(data, "/").check(str(tmp_path / "photos"))


async def test_not_even_an_administrator_may_watch_outside_the_roots(tmp_path: Path) -> None:
    data, _ = dirs(tmp_path)
    async with control(data) as server:
        body = {"spec": {"name": "photo", "trigger": [{"watch": "/home/alice"}]}, "image": f"photo@{DIGEST}"}
        refused = await server.call("PUT", "/v1/functions/photo", body)
        assert refused.status == 400
        assert b"trigger_roots" in refused.body


async def test_a_folder_that_is_no_longer_open_is_neither_watched_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos()
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched)
        monkeypatch.setattr(TriggerRoots, "check", roots(data, "/srv").check)
        await until(lambda: server.gateway.folders.problems())
        (watched / "a.jpg").write_bytes(b"a")
        event = QueuedEvent(
            "id", "default", "photo", Trigger.FOLDER, Kind.FILE, created_at=time.time(),
            meta={"watch": str(watched), "pattern": "*", "name": "a.jpg", "mtime_ns": 0, "size": 1},
        )  # fmt: skip
        await server.gateway.dispatcher.accept(event)
        assert (await until(lambda: letters(server)))[0]["error_type"] == "InvalidInput"
        await quiet()
        assert photos.events == []
        (problem,) = server.gateway.folders.problems()["default", "photo"]
        assert "trigger_roots" in problem
    assert sum("trigger_roots" in r.message and r.name == "faas.folder" for r in caplog.records) == 1  # said once


# Who is writing


async def test_a_writer_that_pauses_is_waited_for(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos()
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched)
        script = "import sys, time\nf = open(sys.argv[1], 'wb', buffering=0)\n"
        script += "for _ in range(3):\n f.write(b'part.')\n time.sleep(1.5)\n"
        writer = await asyncio.create_subprocess_exec(sys.executable, "-c", script, str(watched / "slow.jpg"))
        assert await writer.wait() == 0
        await until(lambda: photos.events)
        await quiet()
        assert [record["s3"]["object"]["size"] for record in photos.events] == [15]


async def test_where_nobody_can_tell_who_is_writing_a_file_rests_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos()
    monkeypatch.setattr(files, "being_written", lambda watch, found: None)
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched)
        began = time.monotonic()
        (watched / "a.jpg").write_bytes(b"a")
        await until(lambda: photos.events)
        assert time.monotonic() - began >= folder.UNLEASED_SETTLE_SECONDS


def test_a_file_is_being_written_exactly_while_a_program_has_it_open_for_writing(tmp_path: Path) -> None:
    (tmp_path / "still").write_bytes(b"x")
    (tmp_path / "read").write_bytes(b"x")
    with open(tmp_path / "open", "wb") as writer, open(tmp_path / "read", "rb"):
        with listed(tmp_path) as found:
            everything = [*found.values(), SeenFile("gone", 0, 0)]
            assert files.being_written(str(tmp_path), everything) == {found["open"]}
        writer.close()
        assert files.being_written(str(tmp_path), everything) == set()


def test_a_writer_that_comes_while_the_lease_is_held_does_not_end_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel then tells the holder by a signal, which ends a program that has not chosen another."""
    (tmp_path / "busy").write_bytes(b"x")
    signals: list[int] = []
    real, writer = fcntl.fcntl, threading.Thread(target=lambda: open(tmp_path / "busy", "ab").close())

    def slowly(descriptor: int, command: int, argument: int) -> int:
        done = real(descriptor, command, argument)
        if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
            writer.start()
            time.sleep(0.3)
            assert writer.is_alive()  # it waits for the lease
        return done

    monkeypatch.setattr(fcntl, "fcntl", slowly)
    before = signal.signal(signal.SIGIO, lambda number, _: signals.append(number))
    try:
        assert files.being_written(str(tmp_path), [SeenFile("busy", 0, 1)]) == set()
        writer.join(5)
        assert (writer.is_alive(), signals) == (False, [])
    finally:
        signal.signal(signal.SIGIO, before)


async def test_a_file_that_is_too_large_is_a_dead_letter_and_a_problem_while_it_lies_there(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos()
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched)
        (watched / "huge.jpg").touch()
        os.truncate(watched / "huge.jpg", files.CONTENT_BYTES + 1)
        (letter,) = await until(lambda: letters(server))
        assert (letter["error_type"], letter["attempts"], letter["trigger"]) == ("PayloadTooLarge", 1, "folder")
        assert f"{watched}/huge.jpg has 4,700,001 bytes; an event holds at most 4,700,000" in letter["error_message"]
        await until(lambda: server.gateway.folders.problems())
        (shown,) = (await server.call("GET", "/v1/triggers")).json()["triggers"]
        reason = (await server.call("GET", "/v1/functions/photo")).json()["reason"]
        assert reason == f"FolderProblem: {shown['problem']}"
        assert reason.endswith("4,700,000 bytes: huge.jpg")
        (watched / "huge.jpg").unlink()
        await until(lambda: not server.gateway.folders.problems())
        assert photos.events == []


# Bookkeeping


async def test_many_files_are_few_statements(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    for number in range(1200):
        (watched / f"old{number}.jpg").touch()
    photos = Photos({"files": []})
    async with control(data, FakeWorker(photos)) as server:
        statements: list[str] = []

        def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "trigger_files" in statement and not statement.startswith("SELECT"):
                statements.append(statement)

        for engine in (server.gateway.database._writer.sync_engine, server.gateway.database._changer):
            listen(engine, "before_cursor_execute", count)
        await deployed(server, watched)
        assert len(statements) == 1
        for number in range(1100):
            (watched / f"new{number}.jpg").touch()
        await until(lambda: len(photos.events) == 1100, 60)
        assert len(statements) <= 10


async def test_an_output_is_not_forgotten_between_its_row_and_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many looks find the row without the file."""
    data, watched = dirs(tmp_path)
    photos, publish = Photos(), files.publish

    def late(watch: str, made: list[files.Output]) -> None:
        for number in range(3):
            (watched / f"wakes{number}.txt").touch()
            time.sleep(0.3)
        publish(watch, made)

    monkeypatch.setattr(files, "publish", late)
    monkeypatch.setattr(folder.FolderTriggers.__init__, "__kwdefaults__", {
        **(folder.FolderTriggers.__init__.__kwdefaults__ or {}), "look_seconds": 5.0,
    })  # fmt: skip
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched)
        await until(lambda: len(server.gateway.folders._watched) == 1)
        (watched / "a.jpg").write_bytes(b"aaaaaa")
        await until((watched / "a.thumb.jpg").exists)
        await quiet()
        assert photos.names == ["a.jpg"]


async def test_a_file_that_went_is_forgotten_after_a_while(tmp_path: Path) -> None:
    data, watched = dirs(tmp_path)
    photos = Photos({"files": []})
    async with control(data, FakeWorker(photos)) as server:
        await deployed(server, watched)
        (watched / "a.jpg").write_bytes(b"a")
        await until(lambda: photos.events)
        (watched / "a.jpg").unlink()

        async def forgotten() -> bool:
            async with server.gateway.database.read() as tx:
                (row,) = await tx.run_sync(triggers.every)
                return not await tx.run_sync(triggers.seen, row)

        await until(forgotten)


async def test_triggers_that_could_not_be_read_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, watched = dirs(tmp_path)
    photos, every, broken = Photos(), triggers.every, []

    def once(tx: Tx) -> list[TriggerRow]:
        if not broken:
            broken.append(1)
            raise Unavailable("the disk is gone")
        return every(tx)

    async with control(data, FakeWorker(photos)) as server:
        monkeypatch.setattr(triggers, "every", once)
        await deployed(server, watched)
        assert broken
        (watched / "a.jpg").write_bytes(b"aaaaaa")
        await until((watched / "a.thumb.jpg").exists)
