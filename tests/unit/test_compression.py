"""`compress = true`: who gets what, what stays as it is, and that it comes out as it went in."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import zstandard
from aiohttp import ClientSession
from multidict import CIMultiDict, CIMultiDictProxy

from faas.leases import HttpRequest, HttpResponse, InvocationResult, StreamedResult
from faas.protocol import Revision
from faas.spec import Interface
from faas.web import RUNNER_OPTIONS
from gateway.edge.compression import Encoder, chosen, may_be
from tests.support.data_path import application, data_path, put, revision
from tests.support.fake_worker import FakeWorker, OnRequest, stream
from tests.support.raw_http import serving

TEXT = b"to be or not to be " * 200
TYPE = ("Content-Type", "text/plain")


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", ""),
        ("identity", ""),
        ("br", ""),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("x-gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("gzip;q=0.3,zstd;q=0.30", "zstd"),
        ("gzip;q=0", ""),
        ("gzip;q=0.000", ""),
        ("*", "zstd"),
        ("*;q=0", ""),
        ("zstd;q=0, *", "gzip"),
        ("gzip;q=0, *;q=0.5", "zstd"),
        ("identity;q=0", ""),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("identity;q=1, gzip;q=0.5", ""),
        ("identity, gzip", "gzip"),
        ("gzip;q=2", ""),
        ("gzip;q=nan", ""),
        ("gzip ; q=0.5", "gzip"),
        (",,gzip,,", "gzip"),
        ("gzip;q=", ""),
        ("a," * 10_000 + "gzip", ""),
    ],
)
def test_the_coding_is_the_one_that_the_client_likes_best_of_ours(accept: str, coding: str) -> None:
    assert chosen(accept) == coding


@pytest.mark.parametrize(
    ("status", "headers", "length", "fits"),
    [
        (200, {}, 5000, True),
        (200, {}, None, True),
        (404, {}, 5000, True),
        (502, {}, 5000, True),
        (200, {}, 1024, True),
        (200, {}, 1023, False),
        (204, {}, None, False),
        (206, {}, 5000, False),
        (304, {}, None, False),
        (101, {}, None, False),
        (200, {"Content-Type": "application/json; charset=utf-8"}, 5000, True),
        (200, {"Content-Type": "application/vnd.api+json"}, 5000, True),
        (200, {"Content-Type": "image/svg+xml"}, 5000, True),
        (200, {"Content-Type": "TEXT/HTML"}, 5000, True),
        (200, {"Content-Type": "image/png"}, 5000, False),
        (200, {"Content-Type": "application/zip"}, 5000, False),
        (200, {"Content-Type": "application/octet-stream"}, 5000, False),
        (200, {"Content-Type": "text/event-stream"}, None, False),
        (200, {"Content-Type": "text/event-stream; charset=utf-8"}, None, False),
        (200, {"Content-Type": ""}, 5000, False),
        (200, {"Content-Encoding": "br"}, 5000, False),
        (200, {"Content-Encoding": "identity"}, 5000, True),
        (200, {"Content-Range": "bytes 0-1/5"}, 5000, False),
        (200, {"Cache-Control": "public, No-Transform"}, 5000, False),
        (200, {"Content-MD5": "x"}, 5000, False),
        (200, {"Content-Digest": "sha-256=:x:"}, 5000, False),
    ],
)
def test_which_answers_may_be_compressed(status: int, headers: dict[str, str], length: int | None, fits: bool) -> None:
    assert may_be(status, CIMultiDict({"Content-Type": "text/plain", **headers}), length) is fits


def plain(coding: str, data: bytes) -> bytes:
    if coding == "gzip":
        return zlib.decompress(data, zlib.MAX_WBITS | 16)
    return (
        zstandard.ZstdDecompressor(max_window_size=8 * 1_048_576).decompressobj().decompress(data) if coding else data
    )


def answering(*fields: tuple[str, str], status: int = 200, body: bytes = TEXT, known: bool = True) -> OnRequest:
    async def on_request(revision: Revision, request: HttpRequest) -> HttpResponse:
        length = (("Content-Length", str(len(body))),) if known else ()
        return HttpResponse(status, (*fields, *length), stream(body))

    return on_request


async def asked(
    worker: FakeWorker,
    accept: str = "gzip",
    *,
    method: str = "GET",
    interface: Interface = Interface.HTTP,
    compress: bool = True,
    span: str = "",
) -> tuple[CIMultiDictProxy[str], bytes]:
    path, _ = data_path(worker)
    put(path, revision(interface=interface, compress=compress))
    async with serving(application(path), **RUNNER_OPTIONS) as port, ClientSession(auto_decompress=False) as session:
        url = f"http://127.0.0.1:{port}/function/hello"
        sent = {"Accept-Encoding": accept} | ({"Range": span} if span else {})
        async with session.request(method, url, headers=sent) as answer:
            return answer.headers, await answer.read()


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [2_000, 200_000])
@pytest.mark.parametrize("known", [True, False])
async def test_an_http_functions_answer_comes_out_as_it_went_in(coding: str, size: int, known: bool) -> None:
    body = (TEXT * 100)[:size]
    fields = (TYPE, ("ETag", '"abc"'), ("Accept-Ranges", "bytes"), ("Vary", "Cookie"))
    headers, data = await asked(FakeWorker(on_request=answering(*fields, body=body, known=known)), coding)
    assert headers["Content-Encoding"] == coding
    assert headers["ETag"] == 'W/"abc"'
    assert headers["Vary"] == "Cookie, Accept-Encoding"
    assert "Accept-Ranges" not in headers
    assert headers.get("Content-Length") in (None, str(len(data)))
    assert len(data) < size / 4
    assert plain(coding, data) == body


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_lambda_functions_answer_is_compressed_too(coding: str) -> None:
    body = b'{"key": "value"}' * 40_000  # more than the loop itself takes

    async def answers(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(body)

    headers, data = await asked(FakeWorker(answers), coding, interface=Interface.LAMBDA)
    assert (headers["Content-Encoding"], headers["Content-Length"]) == (coding, str(len(data)))
    assert plain(coding, data) == body


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_streamed_answer_is_flushed_piece_by_piece(coding: str) -> None:
    more = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"line": 1}\n'
        await more.wait()
        yield b'{"line": 2}\n'

    async def on_stream(revision: Revision, event: bytes) -> StreamedResult:
        return StreamedResult(pieces(), b'{"headers": {"Content-Type": "application/x-ndjson"}}')

    worker = FakeWorker()
    worker.on_stream = on_stream
    path, _ = data_path(worker)
    put(path, revision(compress=True))
    async with serving(application(path), **RUNNER_OPTIONS) as port, ClientSession(auto_decompress=False) as session:
        url = f"http://127.0.0.1:{port}/function/hello"
        async with session.get(url, headers={"Accept-Encoding": coding}) as answer:
            gzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
            decoder = gzip if coding == "gzip" else zstandard.ZstdDecompressor().decompressobj()
            first = b""
            async with asyncio.timeout(5):
                while not first:
                    first = decoder.decompress(await answer.content.readany())
            assert first == b'{"line": 1}\n'
            more.set()
            assert decoder.decompress(await answer.content.read()) == b'{"line": 2}\n'


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("fields", "accept", "span", "varies"),
    [
        ((TYPE,), "br", "", True),
        ((TYPE,), "identity;q=0", "", True),
        ((TYPE,), "gzip", "bytes=0-10", True),
        ((TYPE, ("Cache-Control", "no-transform")), "gzip", "", False),
        ((TYPE, ("Content-Encoding", "br")), "gzip", "", False),
        ((("Content-Type", "image/png"),), "gzip", "", False),
        ((("Content-Type", "text/event-stream"),), "gzip", "", False),
    ],
)
async def test_what_stays_as_it_is(fields: Any, accept: str, span: str, varies: bool, known: bool) -> None:
    worker = FakeWorker(on_request=answering(*fields, ("ETag", '"abc"'), known=known))
    headers, body = await asked(worker, accept, span=span)
    assert body == TEXT
    assert headers.get("Content-Encoding") == dict(fields).get("Content-Encoding")
    assert headers["ETag"] == '"abc"'
    assert ("Accept-Encoding" in headers.get("Vary", "")) is varies


async def test_a_small_answer_and_a_head_and_a_function_without_the_rule_are_left_alone() -> None:
    small, _ = await asked(FakeWorker(on_request=answering(TYPE, body=b"a" * 1000)))
    head, body = await asked(FakeWorker(on_request=answering(TYPE)), method="HEAD")
    without, _ = await asked(FakeWorker(on_request=answering(TYPE)), compress=False)
    for headers in (small, head, without):
        assert "Content-Encoding" not in headers
    assert body == b""
    assert "Vary" not in without


async def test_what_does_not_become_smaller_goes_as_it_is() -> None:
    noise = os.urandom(20_000)
    headers, body = await asked(FakeWorker(on_request=answering(TYPE, body=noise)))
    assert "Content-Encoding" not in headers
    assert body == noise


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_a_large_body_leaves_the_loop_free(coding: str) -> None:
    """Other tasks get their turns while 20 MB are compressed."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await asyncio.sleep(0)
    encoder = Encoder(coding)
    await encoder.add(os.urandom(20_000_000))
    task.cancel()
    assert turns > 70  # a slice each
