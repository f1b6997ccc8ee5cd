"""Answers compressed for clients that take it (`compress = true`): zstd or gzip, by Accept-Encoding (RFC 9110, 12.5.3).

What is not touched: what is compressed already (by its Content-Encoding or its type), parts of a whole, answers that
say `no-transform` or carry a digest of their bytes, small ones, and event streams, whose events must not wait.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Mapping

import zstandard
from aiohttp import hdrs, web
from multidict import CIMultiDict

from gateway.headers import vary

CODINGS = ("zstd", "gzip")  # the first is taken where a client likes both as much
LEAST_BYTES = 1024
INLINE_BYTES = 16_384  # a fraction of a millisecond of the loop's time; more than that is a thread's
SLICE_BYTES = 262_144
GZIP_LEVEL, ZSTD_LEVEL = 5, 3
# About 350 KB for each stream that is open (gzip: 230) instead of zstd's usual 1 to 3 MB, for 1 % of the size.
ZSTD_MEMORY = {"window_log": 17, "hash_log": 14, "chain_log": 14}

_WHOLE_ONLY = (204, 205, 206, 304)
_AS_IT_IS = (hdrs.CONTENT_RANGE, hdrs.CONTENT_MD5, "Digest", "Content-Digest", "Repr-Digest")
_TYPES = re.compile(
    r"text/(?!event-stream$).+|.+\+(json|xml|text)|image/(bmp|svg\+xml|x-icon)|font/(otf|ttf)"
    r"|application/(json|xml|javascript|x-javascript|ecmascript|graphql|x-ndjson|ndjson|jsonl|wasm|yaml|toml|sql"
    r"|x-www-form-urlencoded|vnd\.ms-fontobject)"
)
_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


def chosen(accept: str) -> str:
    """The coding for an Accept-Encoding value; "" for none."""
    qualities: dict[str, float] = {}
    for item in accept.lower().split(",")[:64]:
        name, _, parameter = item.partition(";")
        quality = _QUALITY.fullmatch(parameter.strip())
        value = float(quality[1]) if quality else 0.0 if parameter.strip() else 1.0
        qualities[name.strip().removeprefix("x-")] = value
    others = qualities.get("*", 0.0)
    best = max(CODINGS, key=lambda coding: qualities.get(coding, others))
    quality_of_best = qualities.get(best, others)
    return best if quality_of_best > 0 and quality_of_best >= qualities.get("identity", 0.0) else ""


def may_be(status: int, headers: Mapping[str, str], length: int | None) -> bool:
    """Whether an answer with this head may be compressed at all; `length` is None where it is not known."""
    kind = headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    return (
        status >= 200
        and status not in _WHOLE_ONLY
        and (length is None or length >= LEAST_BYTES)
        and headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() == "identity"
        and "no-transform" not in headers.get(hdrs.CACHE_CONTROL, "").lower()
        and not any(name in headers for name in _AS_IT_IS)
        and _TYPES.fullmatch(kind) is not None
    )


def _wanted(request: web.Request, answer: web.StreamResponse, length: int | None) -> str:
    """The coding that `answer` gets, "" for none; says in its head that others get another."""
    if not may_be(answer.status, answer.headers, length):
        return ""
    vary(answer.headers, hdrs.ACCEPT_ENCODING)
    if request.method == "HEAD" or hdrs.RANGE in request.headers:
        return ""
    return chosen(",".join(request.headers.getall(hdrs.ACCEPT_ENCODING, ())))


def _mark(headers: CIMultiDict[str], coding: str) -> None:
    headers[hdrs.CONTENT_ENCODING] = coding
    headers.popall(hdrs.CONTENT_LENGTH, None)
    headers.popall(hdrs.ACCEPT_RANGES, None)  # they would be of other bytes
    etag = headers.get(hdrs.ETAG, "")
    if etag.startswith('"'):
        headers[hdrs.ETAG] = f"W/{etag}"


async def compress(request: web.Request, answer: web.Response) -> None:
    """Compress an answer whose whole body is there, where that makes it smaller."""
    body = answer.body
    if not isinstance(body, bytes) or not (coding := _wanted(request, answer, len(body))):
        return
    encoder = Encoder(coding)
    smaller = await encoder.add(body) + encoder.end()
    if len(smaller) < len(body):
        _mark(answer.headers, coding)
        answer.body = smaller


def encoder_for(request: web.Request, answer: web.StreamResponse, length: int | None) -> Encoder | None:
    """What the body of an answer that streams goes through, None where it goes as it is; changes the answer's head."""
    coding = _wanted(request, answer, length)
    if not coding:
        return None
    _mark(answer.headers, coding)
    return Encoder(coding, flush=length is None)


class Encoder:
    """One body. `flush`: what was added can be read by the client at once, as where a function sends as it works."""

    def __init__(self, coding: str, *, flush: bool = False) -> None:
        self._flush: int | None = None
        self._compressor: zstandard.ZstdCompressionObj | zlib._Compress
        if coding == "zstd":
            parameters = zstandard.ZstdCompressionParameters.from_level(ZSTD_LEVEL, **ZSTD_MEMORY)
            self._compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
            self._flush = zstandard.COMPRESSOBJ_FLUSH_BLOCK if flush else None
        else:
            self._compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)
            self._flush = zlib.Z_SYNC_FLUSH if flush else None

    async def add(self, data: bytes) -> bytes:
        """What comes out for `data`, which may be nothing yet."""
        if len(data) <= INLINE_BYTES:
            return self._add(data)
        view, made = memoryview(data), b""
        for start in range(0, len(data), SLICE_BYTES):
            made += await asyncio.to_thread(self._add, view[start : start + SLICE_BYTES])
        return made

    def end(self) -> bytes:
        return self._compressor.flush()

    def _add(self, data: bytes | memoryview) -> bytes:
        made = self._compressor.compress(data)
        return made if self._flush is None else made + self._compressor.flush(self._flush)
