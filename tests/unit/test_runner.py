"""What is no HTTP at all: our form of answer, one line in the log, whatever was sent."""

from __future__ import annotations

import json
import logging

import pytest

from faas.web import RUNNER_OPTIONS
from tests.support.data_path import application
from tests.support.raw_http import serving, talk
from tests.support.smuggling import GET
from tests.unit.test_public import hello

BAD = {
    "no request line": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a method of no letters": b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a field without a colon": GET + b"Host: a\r\n<script>alert(1)</script>\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    "a line too long": GET + b"Host: a\r\nX: " + b"\x1b[31m" + b"a" * 20_000 + b"\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
}


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD.keys())
async def test_what_is_no_http_gets_our_answer_with_an_id_that_the_log_has(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        answer = await talk(port, sent, seconds=2)
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0].split()[1] == "400"
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    assert fields["server"] == "faas"
    assert fields["content-type"] == "application/json; charset=utf-8"
    error = json.loads(body)["error"]
    assert error["request_id"] == fields["x-request-id"]
    assert b"script" not in answer, "nothing that was sent is said back"
    records = [record for record in caplog.records if record.name.startswith(("faas", "aiohttp"))]
    assert [record.__dict__.get("request_id") for record in records] == [error["request_id"]]
    assert len(records[0].getMessage()) < 300
    assert records[0].exc_info is None


async def test_hundreds_of_bad_requests_are_as_many_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        for _ in range(200):
            assert b" 400 " in await talk(port, b"\x00\r\nfake: line\r\n\r\n", seconds=2)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith(("faas", "aiohttp"))]
    assert len(messages) == 200
    assert not any("\n" in message for message in messages)


async def test_every_answer_of_ours_names_us_and_no_library() -> None:
    async with serving(application(hello()), **RUNNER_OPTIONS) as port:
        for target in (b"/function/hello", b"/function/none", b"/nothing"):
            answer = await talk(port, b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert b"\r\nServer: faas\r\n" in answer
            assert b"aiohttp" not in answer.partition(b"\r\n\r\n")[0]
