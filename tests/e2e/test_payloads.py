"""What a function is given and says, on a real server: format 1.0, CORS and compression by its file, and an answer
that its client reads while the function still writes it."""

from __future__ import annotations

import http.client
import json
import zlib
from pathlib import Path

import pytest

from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

ASKED = """
import json

def handler(event, context):
    return {
        "statusCode": 200,
        "multiValueHeaders": {"Set-Cookie": ["a=1", "b=2"], "Access-Control-Allow-Origin": ["*"]},
        "body": json.dumps({"event": event, "filling": "to be or not to be " * 200}),
    }
"""
ASKED_TOML = """
payload = "1.0"
compress = true
[cors]
origins = ["https://www.example.com"]
expose = ["X-Request-Id"]
"""
PAGE = "https://www.example.com"

# The runtime's client does not stream: the handler answers itself, and the client's own answer is then refused.
STREAMS = """
import os
import socket
import time

HEAD = (
    "POST /2018-06-01/runtime/invocation/{}/response HTTP/1.1\\r\\nHost: a\\r\\n"
    "Lambda-Runtime-Function-Response-Mode: streaming\\r\\n"
    "Content-Type: application/vnd.awslambda.http-integration-response\\r\\n"
    "Transfer-Encoding: chunked\\r\\n\\r\\n"
)
PRELUDE = b'{"statusCode": 202, "headers": {"X-Mine": "1", "Content-Type": "text/plain"}, "cookies": ["a=1"]}'

def handler(event, context):
    host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
    with socket.create_connection((host, int(port))) as api:
        def say(data):
            api.sendall(b"%x\\r\\n%b\\r\\n" % (len(data), data))

        api.sendall(HEAD.format(context.aws_request_id).encode())
        say(PRELUDE + bytes(8))
        for n in range(3):
            say(b"piece %d;" % n)
            if event["rawPath"] == "/dies":
                os._exit(3)
            time.sleep(0.3)
        say(b"")
        api.recv(4096)
"""


def test_a_functions_file_asks_for_format_1_cors_and_compression(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "asked-things", ASKED, ASKED_TOML)
    headers = {"Origin": PAGE, "Accept-Encoding": "gzip", "Cookie": "c=3"}
    answer = server.get("/function/asked-things/a%20b?x=1&x=2", headers=headers)
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Access-Control-Expose-Headers"] == "X-Request-Id"
    assert {name.strip() for name in answer.headers["Vary"].split(",")} == {"Accept-Encoding", "Origin"}
    event = json.loads(zlib.decompress(answer.body, zlib.MAX_WBITS | 16))["event"]
    assert (event["version"], event["path"], event["headers"]["cookie"]) == ("1.0", "/a%20b", "c=3")
    assert event["multiValueQueryStringParameters"] == {"x": ["1", "2"]}

    asking = {"Origin": PAGE, "Access-Control-Request-Method": "PUT"}
    preflight = server.request("OPTIONS", "/function/asked-things", headers=asking)
    assert (preflight.status, preflight.headers["Access-Control-Allow-Origin"]) == (204, PAGE)
    other = server.get("/function/asked-things", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


def test_a_streamed_answer_is_read_while_it_is_written_and_one_that_breaks_off_is_no_end(
    server: RunningServer, tmp_path: Path
) -> None:
    server.push_code(tmp_path, "streams", STREAMS)
    host, _, port = server.public.removeprefix("http://").partition(":")
    client = http.client.HTTPConnection(host, int(port), timeout=30)
    client.request("GET", "/function/streams")
    answer = client.getresponse()
    assert (answer.status, answer.headers["X-Mine"], answer.headers["Set-Cookie"]) == (202, "1", "a=1")
    assert answer.headers["Content-Type"] == "text/plain"
    pieces = list(iter(answer.read1, b""))
    assert b"".join(pieces) == b"piece 0;piece 1;piece 2;"
    assert len(pieces) > 1, "it came while it was written"
    client.request("GET", "/function/streams/dies")
    answer = client.getresponse()
    assert answer.status == 202
    with pytest.raises(http.client.IncompleteRead):
        answer.read()
    answer.close()
    client.close()
