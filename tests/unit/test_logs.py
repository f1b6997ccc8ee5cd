"""Functions' logs: order, bounds, queries, followers; and the pump that never makes a function wait."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faas.leases import Report
from faas.protocol import LogQuery, LogRecord
from tests.support.fake_driver import eventually
from worker import logs, marks, output
from worker.logs import Follower, LogStore, decode, encode
from worker.output import INVOCATION_BYTES, LINE_BYTES, Output


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LogStore]:
    store = LogStore(tmp_path)
    yield store
    await store.close()


async def read(store: LogStore, **query: Any) -> list[str]:
    return [r.message async for r in store.query(LogQuery("default", "hello", **query))]


def record(message: str, time: float = 1.0, request_id: str = "") -> LogRecord:
    return LogRecord(time, message, "stdout", 7, "i1", request_id)


async def test_lines_come_back_in_order_whether_written_yet_or_not(store: LogStore) -> None:
    log = store.of("default", "hello")
    for n in range(1000):
        log.append(record(str(n), float(n)))
        if n == 500:
            await asyncio.sleep(0.05)  # a batch goes to disk
    assert await read(store) == [str(n) for n in range(1000)]
    assert await read(store, limit=3) == ["997", "998", "999"]
    assert await read(store, since=998.0) == ["998", "999"]
    assert await read(store, contains="77") == [str(n) for n in range(1000) if "77" in str(n)]


async def test_a_query_by_request_gives_its_lines_alone(store: LogStore) -> None:
    log = store.of("default", "hello")
    for n in range(10):
        log.append(record(f"line {n} mentions r3", request_id=f"r{n}"))
    assert await read(store, request_id="r3") == ["line 3 mentions r3"]


async def test_a_query_by_time_instance_or_stream_gives_those_lines_alone(store: LogStore) -> None:
    log = store.of("default", "hello")
    for n in range(10):
        stream = "stderr" if n % 2 else "stdout"
        log.append(LogRecord(float(n), str(n), stream, 7, f"{'ab'[n // 5]}123"))
    assert await read(store, since=2.0, until=4.0) == ["2", "3"]
    assert await read(store, until=8.0, limit=2) == ["6", "7"]
    assert await read(store, instance="a123") == await read(store, instance="a") == [str(n) for n in range(5)]
    assert await read(store, instance="b", stream="stderr") == ["5", "7", "9"]
    assert await read(store, instance="123") == []


async def test_functions_and_namespaces_are_apart(store: LogStore) -> None:
    store.of("default", "hello").append(record("mine"))
    store.of("team", "hello").append(record("theirs"))
    store.of("default", "other").append(record("other"))
    assert await read(store) == ["mine"]


@pytest.mark.parametrize(
    "message",
    [
        "line\r\nbreak",
        "\x1b[31mred\x1b[0m",
        'fake","stream":"system","message":"x',
        "\x00\x07",
        "日本 \ud800",
        "\u2028",
    ],
)
async def test_nothing_that_is_written_can_break_out_of_its_line(store: LogStore, message: str) -> None:
    line = encode(record(message))
    assert line.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in line[:-1])
    assert json.loads(line)["stream"] == "stdout"
    store.of("default", "hello").append(record(message))
    assert await read(store) == [message]


def test_a_line_that_a_crash_cut_off_is_left_out() -> None:
    assert decode(encode(record("whole"))) == (record("whole"),)
    assert decode(encode(record("cut"))[:-10]) == ()
    start = marks.encode(marks.Mark(12.5, marks.Origin(7, "i1"), "r1", None))
    assert [r.message for r in decode(start)] == ["START RequestId: r1 Version: 7"]
    for line in (start[:-4], b"[1]\n", b'["x",7,"i1","r1"]\n', b'[1,7,"i1","r1",2,3,"x",5]\n', b"7\n"):
        assert decode(line) == ()


async def test_disk_space_is_bounded_and_the_newest_lines_stay(
    store: LogStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 10_000)
    log = store.of("default", "hello")
    for n in range(100):
        log.append(record(f"{n} " + "x" * 1000))
        await read(store, limit=1)  # writes what is there
        assert all(path.stat().st_size <= 10_000 for path in (tmp_path / "default" / "hello").iterdir())
    kept = await read(store)
    assert kept[-1].startswith("99 ")
    assert len(kept) < 25


async def test_a_follower_misses_nothing_and_sees_nothing_twice_though_files_rotate(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_BYTES", 3_000)
    log = store.of("default", "hello")
    log.append(record("0"))
    seen: list[str] = []

    async def follow() -> None:
        async for r in store.query(LogQuery("default", "hello", follow=True)):
            seen.append(r.message)  # noqa: PERF401 - looked at while it goes on

    following = asyncio.create_task(follow())
    for n in range(1, 300):
        log.append(record(str(n)))
        await asyncio.sleep(0)
    await eventually(lambda: len(seen) >= 300)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert seen == [str(n) for n in range(300)]
    assert log.followers == set()


async def test_a_follower_of_a_function_that_is_deleted_comes_to_its_end(store: LogStore) -> None:
    store.of("default", "hello").append(record("last"))
    seen: list[str] = []

    async def follow() -> None:
        async for r in store.query(LogQuery("default", "hello", follow=True)):
            seen.append(r.message)  # noqa: PERF401 - looked at while it goes on

    following = asyncio.create_task(follow())
    await eventually(lambda: seen == ["last"])
    store.forget("default", "hello")
    async with asyncio.timeout(5):
        await following


@pytest.mark.parametrize("torn", [b'{"time":1.0,"str', b"\x00\x00"])
async def test_a_line_that_was_cut_off_takes_no_other_one_along(store: LogStore, tmp_path: Path, torn: bytes) -> None:
    folder = tmp_path / "default" / "hello"
    folder.mkdir(parents=True)
    (folder / logs.CURRENT).write_bytes(encode(record("before")) + torn)
    for message in ("first after", "second after"):
        store.of("default", "hello").append(record(message))
    assert await read(store) == ["before", "first after", "second after"]


async def test_a_disk_that_takes_a_part_gets_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, write = list[int](), os.write

    def some(file: int, data: memoryview) -> int:
        written.append(write(file, data[:7]))
        return written[-1]

    store = LogStore(tmp_path)
    store.of("default", "hello").append(record("whole"))
    monkeypatch.setattr(os, "write", some)
    await store.written()
    monkeypatch.undo()
    assert max(written) == 7
    assert decode((tmp_path / "default" / "hello" / logs.CURRENT).read_bytes()) == (record("whole"),)
    await store.close()


async def test_a_follower_that_falls_behind_is_told_how_much_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FOLLOWER_LINES", 2)
    follower = Follower()
    for n in range(5):
        follower.put(record(str(n)))
    told = [await follower.get() for _ in range(3)]
    assert [line.message for line in told if line is not None] == ["0", "1", "3 lines were skipped: read faster"]


async def test_a_disk_that_refuses_costs_lines_not_the_function(tmp_path: Path) -> None:
    (tmp_path / "default").write_text("a file where a folder should be")
    store = LogStore(tmp_path)
    store.of("default", "hello").append(record("lost"))
    assert await read(store) == []
    await store.close()


async def test_a_forgotten_function_begins_anew(store: LogStore, tmp_path: Path) -> None:
    store.of("default", "hello").append(record("old"))
    assert await read(store) == ["old"]
    store.forget("default", "hello")
    store.of("default", "hello").append(record("new"))
    assert await read(store) == ["new"]


async def test_a_buffer_that_cannot_be_written_is_bounded(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BUFFER_BYTES", 1000)
    log = store.of("default", "hello")
    for n in range(100):
        log.append(record(str(n), 50.0 + n))
    assert log.size <= 1000
    assert (await read(store))[-1].endswith("lines could not be stored")
    assert len(await read(store, since=140.0)) == 1, "who asks for the last lines hears of those that are not there"


async def test_a_disk_that_stands_still_has_one_batch_before_it_and_the_rest_waits_or_is_counted(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "BUFFER_BYTES", 20_000)
    disk = threading.Event()
    store._writer.submit(disk.wait)
    log = store.of("default", "hello")
    for n in range(400):
        log.append(record(str(n)))
        if n % 40 == 0:
            await asyncio.sleep(1.5 * logs.FLUSH_SECONDS)
    try:
        assert store._writer._work_queue.qsize() == 1
        assert log.size <= 20_000
    finally:
        disk.set()
    await eventually(lambda: log.size == 0)
    messages = await read(store)
    kept = [message for message in messages if message.isdigit()]
    assert kept == [str(n) for n in range(len(kept))]  # the first ones, none twice, in order
    assert f"{400 - len(kept)} lines could not be stored" in messages
    log.append(record("after"))
    assert (await read(store))[-1] == "after"
    assert (log.size, log.batches) == (0, 0)


async def test_a_reader_that_goes_away_takes_no_line_along(store: LogStore) -> None:
    disk = threading.Event()
    store._writer.submit(disk.wait)
    store.of("default", "hello").append(record("mine"))
    reading = asyncio.create_task(read(store))
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    disk.set()
    assert await read(store) == ["mine"]


# The pump


class Pumped:
    def __init__(self, store: LogStore) -> None:
        self.store = store
        self.stdout, self.stderr = asyncio.StreamReader(), asyncio.StreamReader()
        self.output = Output(store.of("default", "hello"), 7, "i1")
        self.output.open(self.stdout, self.stderr)

    async def end(self) -> list[LogRecord]:
        self.stdout.feed_eof()
        self.stderr.feed_eof()
        await self.output.drained(2)
        await self.output.close()
        """What was logged, but for the STARTs."""
        records = [r async for r in self.store.query(LogQuery("default", "hello"))]
        return [r for r in records if not r.message.startswith("START ")]


async def test_lines_are_cut_where_they_end_across_reads(store: LogStore) -> None:
    pumped = Pumped(store)
    for piece in (b"on", b"e\ntw", b"o\r\n\nlast", b" words"):
        pumped.stdout.feed_data(piece)
        await asyncio.sleep(0)
    pumped.stderr.feed_data(b"\xff\xfe bad utf-8\n")
    records = await pumped.end()
    assert [r.message for r in records if r.stream == "stdout"] == ["one", "two", "", "last words"]
    assert [r.message for r in records if r.stream == "stderr"] == ["\ufffd\ufffd bad utf-8"]


async def test_what_has_arrived_is_logged_at_once_without_waiting_for_the_pump(store: LogStore) -> None:
    pumped = Pumped(store)
    await asyncio.sleep(0)
    for n in range(50):
        pumped.output.begin(f"r{n}")
        pumped.stdout.feed_data(f"half of {n}".encode())
        if n % 3 == 0:
            await asyncio.sleep(0)
        pumped.output.take_now()
        pumped.output.system(f"END {n}", f"r{n}")
    messages = [r.message for r in await pumped.end()]
    assert messages == [text for n in range(50) for text in (f"half of {n}", f"END {n}")]


async def test_a_line_holds_256_kb_and_what_is_cut_is_counted(store: LogStore) -> None:
    pumped = Pumped(store)
    for _ in range(20):
        pumped.stdout.feed_data(b"x" * 50_000)
        await asyncio.sleep(0)
    pumped.stdout.feed_data(b"\nnext\n")
    records = await pumped.end()
    assert [len(r.message) for r in records[:2]] == [LINE_BYTES, 4]
    assert records[2].message == f"{1_000_000 - LINE_BYTES} bytes of output were cut"


async def test_an_invocations_log_holds_10_mb_and_the_next_one_begins_anew(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "INVOCATION_BYTES", 1_000_000)
    assert INVOCATION_BYTES == 10 * 1_048_576
    pumped = Pumped(store)
    pumped.output.begin("loud")
    for _ in range(200):
        pumped.stdout.feed_data(b"y" * 9_999 + b"\n")
        await asyncio.sleep(0)
    await eventually(lambda: not pumped.stdout._buffer)  # type: ignore[attr-defined]
    pumped.output.take_now()
    pumped.output.begin("quiet")
    pumped.stdout.feed_data(b"fine\n")
    records = await pumped.end()
    loud = [r for r in records if r.request_id == "loud"]
    assert sum(len(r.message) + 1 for r in loud if r.stream == "stdout") <= 1_000_000
    assert "bytes of output were cut" in loud[-1].message
    assert [r.message for r in records if r.request_id == "quiet"] == ["fine"]


async def test_a_line_costs_more_than_its_bytes(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "INVOCATION_BYTES", 165_000)
    pumped = Pumped(store)
    for _ in range(4):
        pumped.stdout.feed_data(b"\n" * 1000)
        await asyncio.sleep(0.02)
    records = await pumped.end()
    logged = [r for r in records if r.stream == "stdout"]
    assert 500 < len(logged) < 165_000 // output.LINE_COST
    assert records[-1].message == f"{4000 - len(logged)} bytes of output were cut"


async def test_many_short_lines_are_logged_in_slices_and_all_of_them(store: LogStore) -> None:
    pumped = Pumped(store)
    pumped.output.begin("r1")
    text = [str(n) for n in range(9_999)]  # and a START
    pumped.stdout.feed_data(("\n".join(text) + "\n").encode())
    follower = Follower()
    store.of("default", "hello").followers.add(follower)
    seen = most = 0
    while seen < 9_999:
        await asyncio.sleep(0)
        most, seen = max(most, len(follower._lines) - seen), len(follower._lines)
    assert most <= output.SLICE_LINES + 1, "and the START, once"
    pumped.output.begin("r2")
    records = await pumped.end()
    assert [r.message for r in records] == text
    assert {r.request_id for r in records} == {"r1"}


async def test_what_a_new_invocation_cannot_wait_for_is_still_logged_as_its_own(store: LogStore) -> None:
    pumped = Pumped(store)
    pumped.output.begin("r1")
    await asyncio.sleep(0)
    pumped.stdout.feed_data(b"x\n" * 5000)
    pumped.output.take_now()
    pumped.output.begin("r2")
    records = await pumped.end()
    assert [(r.message, r.request_id) for r in records] == [("x", "r1")] * 5000


async def test_the_tail_keeps_the_last_lines(store: LogStore) -> None:
    pumped = Pumped(store)
    for n in range(200):
        pumped.stderr.feed_data(f"line {n}\n".encode())
    await pumped.end()
    assert pumped.output.tail().splitlines()[0] == "line 150"
    assert pumped.output.tail().splitlines()[-1] == "line 199"


async def test_what_one_of_several_invocations_is_writing_stays_one_line_when_another_one_ends(store: LogStore) -> None:
    pumped = Pumped(store)
    await asyncio.sleep(0)
    pumped.stdout.feed_data(b"the beginning and ")
    pumped.stderr.feed_data(b"whole\nhalf ")
    pumped.output.take_now(begun=False)
    pumped.output.system("END RequestId: other", "other")
    pumped.stdout.feed_data(b"the end\n")
    pumped.stderr.feed_data(b"a line\n")
    messages = [r.message for r in await pumped.end()]
    assert messages == ["whole", "END RequestId: other", "the beginning and the end", "half a line"]


@pytest.mark.parametrize("request_id", ["r1", 'a "quoted\\ one\n…'])
@pytest.mark.parametrize("together", [False, True], ids=["START by itself", "START with its end"])
async def test_lines_kept_as_figures_are_written_and_followed_as_the_text_that_they_are(
    store: LogStore, request_id: str, together: bool
) -> None:
    report = Report(0.01574, 0.016, 128 * 1_048_576, 53_400_000)
    following = store.query(LogQuery("default", "hello", follow=True))
    followed = [asyncio.ensure_future(anext(following))]
    await asyncio.sleep(0.05)
    origin = marks.Origin(7, "i1")
    ended = marks.Mark(12.75, origin, request_id, report, 12.5 if together else 0.0)
    store.of("default", "hello").mark_all([ended] if together else [marks.Mark(12.5, origin, request_id, None), ended])
    live = [await followed[0], await anext(following), await anext(following)]
    await following.aclose()
    written = [record async for record in store.query(LogQuery("default", "hello"))]
    assert written == live
    assert [r.time for r in written] == [12.5, 12.75, 12.75]
    assert {(r.stream, r.revision, r.instance, r.request_id) for r in written} == {("system", 7, "i1", request_id)}
    figures = "Duration: 15.74 ms\tBilled Duration: 16 ms\tMemory Size: 128 MB\tMax Memory Used: 51 MB"
    assert [record.message for record in written] == [
        f"START RequestId: {request_id} Version: 7",
        f"END RequestId: {request_id}",
        f"REPORT RequestId: {request_id}\t{figures}",
    ]
