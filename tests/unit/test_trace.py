"""Trace ids: what is one, what functions are told, and spans at a collector."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from faas.leases import HttpRequest, HttpResponse
from faas.protocol import Revision
from gateway import trace
from gateway.edge.spans import Spans
from gateway.gateway import Gateway
from tests.support.control import Control, control, serving
from tests.support.fake_worker import stream

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


@pytest.mark.parametrize(
    "text",
    ["", "00", PARENT.upper(), PARENT + "-x", PARENT.replace(TRACE_ID, "0" * 32), PARENT.replace(SPAN_ID, "0" * 16),
     "ff" + PARENT[2:], PARENT[:-1], PARENT + "\x00", PARENT * 9, PARENT.replace("-01", "-0g")],
)  # fmt: skip
def test_what_is_no_traceparent_is_none(text: str) -> None:
    assert trace.parent(text) is None


def test_a_traceparent_is_read_and_written_as_version_0() -> None:
    found = trace.parent(PARENT)
    assert found is not None
    assert (str(found), found.sampled) == (PARENT, True)
    later = trace.parent("cc" + PARENT[2:-2] + "03-what-the-future-brings")
    assert str(later) == PARENT


@pytest.mark.parametrize("text", ["", "Root", "Root=1-2;\r\nX: y", "Root=é", "Root=" + "1" * 300, "=1", ";"])
def test_what_is_no_amazon_trace_id_is_none(text: str) -> None:
    assert trace.amazon(text) == ""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        await running.deploy()
        await deploy_web(running)
        yield running


async def deploy_web(server: Control) -> None:
    """An http function that answers with the trace fields it got."""

    async def told(revision: Revision, request: HttpRequest) -> HttpResponse:
        body = json.dumps([[name, value] for name, value in request.headers if name in trace.NAMES]).encode()
        return HttpResponse(200, (("Content-Length", str(len(body))),), stream(body))

    server.worker.on_request = told
    await server.deploy("web", interface="http")


async def fields(server: Control, **headers: str) -> dict[str, str]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return dict((await server.call("GET", "/function/web", public=True, headers=sent)).json())


async def test_what_is_valid_is_passed_on_and_what_is_not_is_dropped(server: Control) -> None:
    amazon = "Root=1-67891233-abcdef012345678912345678;Parent=53995c3f42cd8ad8;Sampled=1"
    assert await fields(server, traceparent=PARENT, tracestate="a=1,b=2", X_Amzn_Trace_Id=amazon) == {
        "traceparent": PARENT, "tracestate": "a=1,b=2", "x-amzn-trace-id": amazon,
    }  # fmt: skip
    assert await fields(server, traceparent="00-0-0-0", tracestate="a=1", X_Amzn_Trace_Id="nonsense") == {}
    assert await fields(server, tracestate="a=1") == {}
    assert await fields(server) == {}


async def test_lambda_style_functions_get_amazons_id_and_one_is_made(server: Control) -> None:
    amazon = "Root=1-67891233-abcdef012345678912345678"
    answered = await server.call("GET", "/function/hello", public=True, headers={"X-Amzn-Trace-Id": amazon})
    assert (server.worker.invocations[-1].trace_id, answered.json()["headers"]["x-amzn-trace-id"]) == (amazon, amazon)
    answered = await server.call("GET", "/function/hello", public=True)
    made = server.worker.invocations[-1].trace_id
    assert re.fullmatch(r"Root=1-[0-9a-f]{8}-[0-9a-f]{24};Parent=[0-9a-f]{16};Sampled=0", made)
    assert answered.json()["headers"]["x-amzn-trace-id"] == made
    await server.call("POST", "/v1/functions/hello/invocations", {}, headers={"X-Amzn-Trace-Id": amazon})
    assert server.worker.invocations[-1].trace_id == amazon


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[str, list[Any]]]:
    """An OTLP receiver; the spans that came."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    got: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        batch = ExportTraceServiceRequest.FromString(await request.read())
        got.extend(s for r in batch.resource_spans for scope in r.scope_spans for s in scope.spans)
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    async with serving(app) as url:
        yield url, got


async def test_a_request_is_a_span_with_those_of_its_parts_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collector() as (url, got):
        spans = Spans(url, "0.0")
        create = Gateway.create
        monkeypatch.setattr(Gateway, "create", lambda *args, **options: create(*args, **options, spans=spans))
        async with control(tmp_path) as server:
            await deploy_web(server)
            told = await fields(server, traceparent=PARENT, tracestate="a=1")
            await server.call("GET", "/function/none", public=True)
            await asyncio.to_thread(spans.close)
    asked = [span for span in got if span.name == "GET"]
    first = next(span for span in asked if span.trace_id.hex() == TRACE_ID)
    assert first.parent_span_id.hex() == SPAN_ID
    assert told == {"traceparent": f"00-{TRACE_ID}-{first.span_id.hex()}-01", "tracestate": "a=1"}
    said = {a.key: a.value.string_value or a.value.int_value or a.value.bool_value for a in first.attributes}
    assert (said["faas.invoked_name"], said["faas.version"], said["http.response.status_code"]) == ("web", "1", 200)
    below = [span for span in got if span.parent_span_id == first.span_id]
    assert [span.name for span in sorted(below, key=lambda s: (s.start_time_unix_nano, s.name))] == [
        "queue",
        "function",
    ]
    for span in below:
        assert first.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
    assert any(span.trace_id.hex() != TRACE_ID for span in asked)  # the one that found no function


async def test_a_trace_that_is_not_sampled_is_not_sent_and_goes_on_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collector() as (url, got):
        spans = Spans(url, "0.0")
        create = Gateway.create
        monkeypatch.setattr(Gateway, "create", lambda *args, **options: create(*args, **options, spans=spans))
        async with control(tmp_path) as server:
            await deploy_web(server)
            told = await fields(server, traceparent=PARENT[:-1] + "0")
            await asyncio.to_thread(spans.close)
    assert told["traceparent"].startswith(f"00-{TRACE_ID}-")
    assert told["traceparent"].endswith("-00")
    assert all(span.trace_id.hex() != TRACE_ID for span in got)
