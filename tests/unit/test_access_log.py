"""The access log: one record of each request, whatever it is made of; bounded in memory and on the disk."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from faas.access_log import FILES, AccessLog, Record, as_combined, as_json
from gateway.gateway import Gateway
from tests.support.control import Control, control
from tests.support.raw_http import talk

PLAIN = Record(1_700_000_000.5, "id-1", "public", "GET", "/function/hello?a=1", "1.1", 200, 0, 7, 0.0123456)
NASTY = '/\r\n\x1b[31m\x00\u2028\u202e\udcff\ud800é"\\ 200 -'


def test_json_has_what_is_known_and_leaves_out_what_is_not() -> None:
    record = dataclasses.replace(PLAIN, function="hello", qualifier="live", revision=7, caller="ci", cold=True)
    assert json.loads(as_json(record)) == {
        "time": "2023-11-14T22:13:20.500Z", "request_id": "id-1", "listener": "public", "method": "GET",
        "path": "/function/hello?a=1", "status": 200, "bytes_in": 0, "bytes_out": 7, "seconds": 0.012346,
        "function": "hello", "qualifier": "live", "revision": 7, "caller": "ci", "cold": True,
    }  # fmt: skip


def test_nothing_of_a_request_breaks_a_line_or_its_json() -> None:
    record = dataclasses.replace(PLAIN, path=NASTY, agent=NASTY, caller=NASTY, trace=NASTY, referer=NASTY)
    line = as_json(record)
    assert line.isascii()
    assert line.isprintable()
    told = json.loads(line)
    told["path"].encode()  # no half of a surrogate pair
    assert "é" in told["path"]
    assert json.loads(as_json(dataclasses.replace(PLAIN, path="/\udcff\r")))["path"] == "/\\xff\r"
    combined = as_combined(record)
    assert combined.isascii()
    assert combined.isprintable()
    assert re.fullmatch(
        r'- - \S+ \[[^]]+\] "GET (?:[^"\\]|\\.)* HTTP/1.1" 200 7 "(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*"', combined
    )


def test_combined_is_apaches() -> None:
    record = dataclasses.replace(PLAIN, caller="a b", address="192.0.2.1", agent="curl/8", referer="http://a/")
    assert as_combined(record) == (
        '192.0.2.1 - a\\x20b [14/Nov/2023:22:13:20 +0000] "GET /function/hello?a=1 HTTP/1.1" 200 7 "http://a/" "curl/8"'
    )


def test_lines_are_written_and_the_files_stay_bounded(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "access.log"
    log = AccessLog(path, "json", file_bytes=2000)
    for number in range(100):
        log.put(dataclasses.replace(PLAIN, request_id=f"id-{number}"))
        if number % 5 == 0:
            log._write()
    log.close()
    log._write()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["access.log", *(f"access.log.{n}" for n in range(1, FILES))]
    assert all(file.stat().st_size <= 2000 for file in files)
    assert json.loads(path.read_text().splitlines()[-1])["request_id"] == "id-99"
    assert path.stat().st_mode & 0o007 == 0


def test_a_full_queue_and_a_full_disk_drop_and_count(tmp_path: Path) -> None:
    lost: list[int] = []
    log = AccessLog(tmp_path, "json", dropped=lost.append, queued=3)  # a folder: every open fails
    for _ in range(5):
        log.put(PLAIN)
    assert lost == [1, 1]
    log._write()
    log.put(PLAIN)
    assert sum(lost) == 5


def test_a_disk_that_stands_still_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, entered = threading.Event(), threading.Event()
    log = AccessLog(tmp_path / "log", "json", queued=10)

    def out(data: bytes) -> None:
        entered.set()
        stuck.wait(10)

    monkeypatch.setattr(log, "_out", out)
    log.start()
    log.put(PLAIN)
    assert entered.wait(5)
    for _ in range(100):
        log.put(PLAIN)
    assert len(log._records) == 10
    stuck.set()
    log.close()


@pytest.fixture
async def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Control, AccessLog, Path]]:
    path = tmp_path / "access.log"
    log = AccessLog(path, "json")
    create = Gateway.create
    monkeypatch.setattr(Gateway, "create", lambda *args, **options: create(*args, **options, access_log=log))
    async with control(tmp_path) as server:
        await server.deploy()
        yield server, log, path


def lines(log: AccessLog, path: Path) -> list[dict[str, object]]:
    deadline = time.monotonic() + 5
    while log._records and time.monotonic() < deadline:
        log._write()
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_request_to_both_listeners_is_one_line(logged: tuple[Control, AccessLog, Path]) -> None:
    server, log, path = logged
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"User-Agent": "test/1", "traceparent": trace}
    seen = await server.call("POST", "/function/hello/a?b=c", b"12345", public=True, headers=headers)
    await server.call("GET", "/function/none", public=True)
    await server.call("GET", "/v1/functions", token="faas_wrong-and-secret")
    await server.call("GET", "/function/hello")
    hello, none, wrong, api = lines(log, path)[-4:]
    assert hello | {"time": "", "seconds": 0, "address": ""} == {
        "time": "", "request_id": seen.headers["X-Request-Id"], "listener": "public", "method": "POST",
        "path": "/function/hello/a?b=c", "status": 200, "bytes_in": 5, "bytes_out": len(seen.body), "seconds": 0,
        "function": "hello", "qualifier": "live", "revision": 1, "address": "", "user_agent": "test/1",
        "trace": trace, "cold": False,
    }  # fmt: skip
    assert (none["status"], "function" in none) == (404, False)
    assert (wrong["status"], wrong["listener"], "caller" in wrong) == (401, "api", False)
    assert (api["caller"], api["function"]) == ("admin", "hello")
    assert b"secret" not in path.read_bytes()
    assert server.token.encode() not in path.read_bytes()


async def test_no_key_of_ours_is_in_a_line_wherever_a_client_put_it(logged: tuple[Control, AccessLog, Path]) -> None:
    server, log, path = logged
    await server.deploy("keyed", public=False, auth={"key": {"query": "key"}})
    key = (await server.call("POST", "/v1/keys", {"name": "partner"})).json()["key"]
    written = [f"/function/keyed?a=1&key={key}", f"/async-function/keyed?key={key}&a=1", f"/nowhere?key={key}"]
    for target in (*written, f"/function/keyed?key={key.replace('_', '%5F', 1)}", f"/{'x' * 2030}?key={key}"):
        await server.call("GET", target, public=True, headers={"Referer": f"http://a/?key={key}"})
    secret = key.split("_", 2)[2]
    found = lines(log, path)[-5:]
    assert secret[:8] not in path.read_text()
    assert found[0]["path"] == "/function/keyed?a=1&key=faask_***"


async def test_bytes_that_are_no_text_are_one_record(logged: tuple[Control, AccessLog, Path]) -> None:
    server, log, path = logged
    before = len(lines(log, path))
    port = int(server.public_url.rpartition(":")[2])
    head = b"GET /function/hello/%ff%0d HTTP/1.1\r\nHost: x\r\nUser-Agent: \xff\xe2\x80\xa8\r\n"
    await talk(port, head + b"Connection: close\r\n\r\n")
    found = lines(log, path)[before:]
    assert [(record["status"], record["path"], record["user_agent"]) for record in found] == [
        (200, "/function/hello/%ff%0d", "\\xff\u2028")
    ]
    assert path.read_bytes().isascii()


async def test_a_client_that_goes_away_is_499(logged: tuple[Control, AccessLog, Path]) -> None:
    server, log, path = logged
    begun = asyncio.Event()

    async def never(revision: object, event: bytes) -> object:
        begun.set()
        await asyncio.sleep(30)
        return None

    server.worker.on_invoke = never  # type: ignore[assignment]
    async with ClientSession() as session:
        call = asyncio.create_task(session.get(server.public_url + "/function/hello"))
        await begun.wait()
        call.cancel()
    for _ in range(200):
        await asyncio.sleep(0.01)
        if lines(log, path)[-1]["status"] == 499:
            break
    assert lines(log, path)[-1]["status"] == 499
