"""The Python runtime client, run by this interpreter as it runs inside, against a small Runtime API."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import os
import py_compile
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.support.ports import free_port

OCTETS = "application/octet-stream"
HTTP_SHAPED = "application/vnd.awslambda.http-integration-response"
RUNTIME = Path(__file__).resolve().parents[2] / "faas" / "runtimes" / "python"


class Api:
    """Hands out events and keeps what was posted: (path, body)."""

    def __init__(self) -> None:
        self.events: Queue[tuple[str, Any]] = Queue()
        self.posted: Queue[tuple[str, Any]] = Queue()
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                request_id, event = api.events.get()
                body = json.dumps(event).encode()
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", request_id)
                self.send_header("Lambda-Runtime-Deadline-Ms", str(int(time.time() * 1000) + 5000))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                if self.headers["Transfer-Encoding"] == "chunked":
                    body: Any = self._streamed()
                else:
                    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.posted.put((self.path.removeprefix("/2018-06-01/runtime/"), body))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _streamed(self) -> tuple[str, list[bytes], dict[str, str]]:
                """(content type, chunks, trailers)"""
                assert self.headers["Lambda-Runtime-Function-Response-Mode"] == "streaming"
                chunks = []
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                trailers = dict(http.client.parse_headers(self.rfile).items())
                return self.headers["Content-Type"], chunks, trailers

            def log_message(self, *_: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # It looks so often whether it is to end, and each test waits for that.
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def function(
    code: str, folder: Path, handler: str = "app.handler", **env: str
) -> Iterator[tuple[Api, subprocess.Popen[bytes]]]:
    (folder / "app.py").write_text(code)
    api = Api()
    source, client = str(RUNTIME / "bootstrap.py"), str(folder / "bootstrap.pyc")
    py_compile.compile(source, client, source, doraise=True)  # its byte code, as in a sandbox
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", client],
        env={"AWS_LAMBDA_RUNTIME_API": api.address, "LAMBDA_TASK_ROOT": str(folder), "_HANDLER": handler, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield api, process
    finally:
        process.kill()
        process.communicate()
        api.server.shutdown()
        api.server.server_close()


def invoke(api: Api, event: Any) -> tuple[str, Any]:
    api.events.put(("req-1", event))
    return api.posted.get(timeout=10)


@pytest.mark.parametrize(
    "code",
    [
        "def handler(event, context):\n    return {'n': event['n'] + 1, 'id': context.aws_request_id}\n",
        "async def handler(event, context):\n    return {'n': event['n'] + 1, 'id': context.aws_request_id}\n",
        "class F:\n    def __call__(self, event, context):\n"
        "        return {'n': event['n'] + 1, 'id': context.aws_request_id}\n"
        "handler = F()\n",
    ],
)
def test_a_handler_is_called_with_event_and_context(tmp_path: Path, code: str) -> None:
    with function(code, tmp_path) as (api, _):
        for number in range(3):
            assert invoke(api, {"n": number}) == ("invocation/req-1/response", {"n": number + 1, "id": "req-1"})


def test_what_it_raises_is_posted_as_lambdas_error_and_it_goes_on(tmp_path: Path) -> None:
    code = "def handler(event, context):\n    return 1 / event\n"
    with function(code, tmp_path) as (api, process):
        path, body = invoke(api, 0)
        assert path == "invocation/req-1/error"
        assert (body["errorType"], body["errorMessage"]) == ("ZeroDivisionError", "division by zero")
        assert "app.py" in body["stackTrace"][0]
        assert invoke(api, 1) == ("invocation/req-1/response", 1.0)
        process.kill()
        _, err = process.communicate()
    assert b"ZeroDivisionError" in err


@pytest.mark.parametrize(
    ("code", "content_type", "chunks"),
    [
        ("def handler(event, context):\n    yield 'one'\n    yield b'two'\n    yield ''\n", OCTETS, [b"one", b"two"]),
        ("def handler(event, context):\n    return (str(n) for n in range(3))\n", OCTETS, [b"0", b"1", b"2"]),
        ("async def handler(event, context):\n    return (text for text in 'ab')\n", OCTETS, [b"a", b"b"]),
        (
            "def handler(event, context):\n    yield {'statusCode': 201}\n    yield 'made'\n",
            HTTP_SHAPED,
            [b'{"statusCode": 201}' + bytes(8), b"made"],
        ),
        ("def handler(event, context):\n    return (n for n in ())\n", OCTETS, []),
    ],
)
def test_a_generator_is_streamed(tmp_path: Path, code: str, content_type: str, chunks: list[bytes]) -> None:
    with function(code, tmp_path) as (api, _):
        for _ in range(2):
            assert invoke(api, {}) == ("invocation/req-1/response", (content_type, chunks, {}))


def test_an_error_in_the_midst_of_a_stream_stands_behind_it(tmp_path: Path) -> None:
    code = "def handler(event, context):\n    yield 'so far'\n    yield str(1 / event)\n"
    with function(code, tmp_path) as (api, process):
        _, (_, chunks, trailers) = invoke(api, 0)
        assert chunks == [b"so far"]
        assert trailers["Lambda-Runtime-Function-Error-Type"] == "ZeroDivisionError"
        told = json.loads(base64.b64decode(trailers["Lambda-Runtime-Function-Error-Body"]))
        assert told["errorMessage"] == "division by zero"
        assert invoke(api, 2)[1][1] == [b"so far", b"0.5"]
        process.kill()
        assert process.stderr is not None
        assert b"ZeroDivisionError" in process.stderr.read()


def test_an_error_before_the_first_piece_is_an_ordinary_error(tmp_path: Path) -> None:
    code = "def handler(event, context):\n    yield str(1 / event)\n"
    with function(code, tmp_path) as (api, _):
        path, body = invoke(api, 0)
        assert (path, body["errorType"]) == ("invocation/req-1/error", "ZeroDivisionError")


def test_an_answer_that_is_no_json_is_a_marshal_error(tmp_path: Path) -> None:
    with function("def handler(event, context):\n    return {1, 2}\n", tmp_path) as (api, _):
        assert invoke(api, 0)[1]["errorType"] == "Runtime.MarshalError"


@pytest.mark.parametrize(
    ("code", "handler", "kind"),
    [
        ("import nowhere\n", "app.handler", "Runtime.ImportModuleError"),
        ("def handler(:\n", "app.handler", "Runtime.UserCodeSyntaxError"),
        ("x = 1\n", "app.handler", "Runtime.HandlerNotFound"),
        ("x = 1\n", "handler", "Runtime.MalformedHandlerName"),
        ("1 / 0\n", "app.handler", "Runtime.ZeroDivisionError"),
    ],
)
def test_an_init_that_fails_says_how_and_ends(tmp_path: Path, code: str, handler: str, kind: str) -> None:
    with function(code, tmp_path, handler) as (api, process):
        path, body = api.posted.get(timeout=10)
        assert (path, body["errorType"]) == ("init/error", kind)
        assert process.wait(10) == 1


def test_a_large_event_and_answer_pass(tmp_path: Path) -> None:
    with function("def handler(event, context):\n    return event\n", tmp_path) as (api, _):
        text = "x" * 3_000_000
        assert invoke(api, text) == ("invocation/req-1/response", text)


def test_printed_lines_are_out_before_the_answer(tmp_path: Path) -> None:
    with function("def handler(event, context):\n    print('seen', event)\n", tmp_path) as (api, process):
        invoke(api, 7)
        assert process.stdout is not None
        assert process.stdout.readline() == b"seen 7\n"


@contextmanager
def web_app(code: str, folder: Path) -> Iterator[int]:
    (folder / "main.py").write_text(code)
    port = free_port()
    env = {"PORT": str(port), "LAMBDA_TASK_ROOT": str(folder), "FAAS_APP": "main:app", "PATH": os.environ["PATH"]}
    process = subprocess.Popen([sys.executable, "-I", "-S", "-B", RUNTIME / "bootstrap.py"], env=env)
    try:
        for _ in range(200):
            with socket.socket() as ready:
                if ready.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        assert process.wait(10) == 0


ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 201, "headers": [(b"x-path", scope["path"].encode())]})
    await send({"type": "http.response.body", "body": body[::-1], "more_body": True})
    await send({"type": "http.response.body", "body": scope["query_string"]})
"""
WSGI = """
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("201 Created", [("X-Path", environ["PATH_INFO"])])
    return [body[::-1], environ["QUERY_STRING"].encode()]
"""


@pytest.mark.parametrize("code", [ASGI, WSGI])
def test_a_web_application_is_served_whichever_way_it_speaks(tmp_path: Path, code: str) -> None:
    with web_app(code, tmp_path) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for body in (b"abc", b"x" * 300_000):  # on one connection
            connection.request("POST", "/a%20b?q=1", body)
            answer = connection.getresponse()
            assert (answer.status, answer.headers["X-Path"]) == (201, "/a b")
            assert answer.read() == body[::-1] + b"q=1"
        connection.request(
            "POST", "/", iter([b"ab", b"cd"]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
        )
        assert connection.getresponse().read() == b"dcba"
        connection.request("HEAD", "/")
        assert connection.getresponse().read() == b""
        connection.close()


def test_an_application_that_raises_answers_500_and_serves_on(tmp_path: Path) -> None:
    code = "async def app(scope, receive, send):\n    raise ValueError('x')\n"
    with web_app(code, tmp_path) as port:
        for _ in range(2):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            assert connection.getresponse().status == 500
            connection.close()


AS_JSON = r"""
import sys
sys.path.insert(0, sys.argv[1])
import bootstrap

READ = [
    b'{"a": [1, 2.5, -3e10, true, false, null, "x\\u00e9\\ud800"], "b": {"c": "\xc3\xa9"}, "a": 2}', b" \n\t {} \r\n",
    b"NaN", b"-Infinity", b'"\xed\xa0\x80"', b"123456789012345678901234567890",
]
WRITTEN = [{"a": [1, 2.5, None, True, "\u00e9\ud800"], 1: 2, None: 3, 2.5: 1, True: 4}, (1,), float("nan"), "x", 10**40]
UNREADABLE = [
    b"", b"{", b'{"a": 1} x', b"\xff", b"{'a': 1}", b"[1,]", b'"\x01"', b"[" * 200_000, '{"a": 1}'.encode("utf-16"),
    b"\xef\xbb\xbf{}", b"\xc2\xa0{}",
]
loop = []
loop.append(loop)
UNWRITABLE = [{1, 2}, b"x", {(1, 2): 3}, [1, {"a": set()}], loop]

def outcome(work, value):
    try:
        return repr(work(value))
    except Exception as error:
        return type(error).__name__, str(error)

def without_json():
    for name in [name for name in sys.modules if name.partition(".")[0] == "json"]:
        del sys.modules[name]

quick = [repr(list(map(bootstrap.loads, READ))), list(map(bootstrap.dumps, WRITTEN))]
assert "json" not in sys.modules
import json
assert quick == [repr(list(map(json.loads, READ))), [json.dumps(value).encode() for value in WRITTEN]]
for ours, theirs, values in (
    (bootstrap.loads, json.loads, UNREADABLE),
    (bootstrap.dumps, lambda value: json.dumps(value).encode(), UNWRITABLE),
):
    for value in values:
        expected = outcome(theirs, value)
        without_json()
        assert outcome(ours, value) == expected, expected
json.JSONEncoder.default = lambda self, value: "patched"
sys.modules["json"] = json
assert bootstrap.dumps({1}) == b'"patched"'
print("same")
"""


def test_json_without_its_module_is_as_with_it() -> None:
    command = [sys.executable, "-S", "-B", "-c", AS_JSON, str(RUNTIME)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("same\n", "")


def test_a_function_that_needs_no_json_starts_without_it(tmp_path: Path) -> None:
    code = "import sys\ndef handler(event, context):\n    return [event, sorted(sys.modules)]\n"
    with function(code, tmp_path) as (api, _):
        event, loaded = invoke(api, {"a": 1})[1]
    assert event == {"a": 1}
    assert not {"json", "re", "enum", "collections"} & set(loaded)
