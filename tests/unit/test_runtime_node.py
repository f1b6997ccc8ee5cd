"""The Node runtime client's streaming handlers, run by this machine's Node against a small Runtime API."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.unit.test_runtime_python import HTTP_SHAPED, OCTETS, RUNTIME, Api, invoke

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no Node here")


@contextmanager
def function(code: str, folder: Path) -> Iterator[Api]:
    (folder / "app.js").write_text(code)
    api = Api()
    process = subprocess.Popen(
        [str(NODE), RUNTIME.parent / "node" / "bootstrap.js"],
        env={"AWS_LAMBDA_RUNTIME_API": api.address, "LAMBDA_TASK_ROOT": str(folder), "_HANDLER": "app.handler"},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield api
    finally:
        process.kill()
        process.wait()
        api.server.shutdown()
        api.server.server_close()


def test_a_plain_handler_answers_and_fails_one_event_after_the_other(tmp_path: Path) -> None:
    code = "exports.handler = async (event) => { if (event < 0) throw new RangeError('no'); return event + 1 }"
    with function(code, tmp_path) as api:
        for number in range(3):
            assert invoke(api, number) == ("invocation/req-1/response", number + 1)
        path, body = invoke(api, -1)
        assert (path, body["errorType"]) == ("invocation/req-1/error", "RangeError")
        assert invoke(api, 7)[1] == 8


def test_a_streaming_handler_writes_its_answer_piece_by_piece(tmp_path: Path) -> None:
    code = """
exports.handler = awslambda.streamifyResponse(async (event, stream, context) => {
  if (event === "early") throw new RangeError("no");
  if (event === "http") stream = awslambda.HttpResponseStream.from(stream, { statusCode: 201, headers: { a: "b" } });
  stream.write("one");
  if (event === "late") throw new TypeError("no more");
  stream.write(Buffer.from("two"));
  if (event === "http") setTimeout(() => stream.end("three"), 20);
  if (event === "http") await new Promise((done) => stream.on("finish", done));
});"""
    with function(code, tmp_path) as api:
        for _ in range(2):
            path, (content_type, chunks, trailers) = invoke(api, "plain")
            assert (path, content_type, chunks, trailers) == ("invocation/req-1/response", OCTETS, [b"one", b"two"], {})
        _, (content_type, chunks, _) = invoke(api, "http")
        assert content_type == HTTP_SHAPED
        prelude, _, body = b"".join(chunks).partition(bytes(8))
        assert (json.loads(prelude), body) == ({"statusCode": 201, "headers": {"a": "b"}}, b"onetwothree")
        _, (_, chunks, trailers) = invoke(api, "late")
        assert (chunks, trailers["Lambda-Runtime-Function-Error-Type"]) == ([b"one"], "TypeError")
        assert json.loads(base64.b64decode(trailers["Lambda-Runtime-Function-Error-Body"]))["errorMessage"] == "no more"
        path, error = invoke(api, "early")
        assert (path, error["errorType"]) == ("invocation/req-1/error", "RangeError")
