"""The Runtime API client for Python handlers: what runs inside a function's sandbox.

Run as `python3 -I -S -B bootstrap.py`; in a sandbox it is the byte code of that, which saves 3 ms. It imports next to
nothing, since in a cold start imports cost more than the sandbox: the standard library's HTTP client alone takes 50 ms.
`_HANDLER` names the handler (`module.function`); `FAAS_APP` (`module:object`) an ASGI or WSGI application, served by
`http_server.py`. With `FAAS_STEM` it is started before it is known for which function (`wait_for_assignment`).
"""

import sys
from _socket import IPPROTO_TCP, SOCK_STREAM, TCP_NODELAY, socket
from os import environ
from time import time

DEPENDENCIES = "/opt/python"
WHITE = " \t\n\r"  # of JSON
PREFIX = b"/2018-06-01/runtime/"
AF_INET = 2
SOURCE = (lambda: None).__code__.co_filename  # of this file; `__file__` is the byte code's
ONE_WRITE = 32768  # of a body
STREAMED_ERROR = 24576  # of an error behind a streamed answer, which goes where headers go
STEM_CHANNEL = 3  # descriptor of the socket to the server, in a stem alone; closed before any of the function's code
# Imported ahead in a stem: what handlers import most and what costs most of a cold start (logging alone 40 ms). Each
# instance pays for it with memory, 5 MB together; asyncio would be 3 MB more.
PRELOADED = (
    *("base64", "collections", "contextlib", "dataclasses", "datetime", "decimal", "functools", "hashlib", "hmac"),
    *("io", "json", "logging", "os", "random", "re", "socket", "threading", "time", "traceback", "typing"),
    *("urllib.parse", "uuid"),
)


class RuntimeApi:
    """One keep-alive connection to the Runtime API; each request is one write."""

    def __init__(self, address):
        host, _, port = address.partition(":")
        self.host = address.encode()
        self.socket = socket(AF_INET, SOCK_STREAM)
        self.socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        self.socket.connect((host, int(port or 80)))
        self.rest = b""

    def request(self, method, path, body=b""):
        """(headers by lower-case name, body) of the answer. Raises OSError where the server is gone."""
        head = self._head(method, path, b"Content-Length: %d" % len(body))
        self.socket.sendall(head + body) if len(body) < ONE_WRITE else (
            self.socket.sendall(head),
            self.socket.sendall(body),
        )
        return self._answer()

    def next(self):
        """Headers and payload of the next event."""
        return self.request(b"GET", b"invocation/next")

    def respond(self, path, body):
        """Post what became of an event, and return the next one: where it is not large both requests are one write."""
        if len(body) > ONE_WRITE:
            self.request(b"POST", path, body)
            return self.next()
        head = self._head(b"POST", path, b"Content-Length: %d" % len(body))
        self.socket.sendall(head + body + self._head(b"GET", b"invocation/next", b"Content-Length: 0"))
        self._answer()
        return self._answer()

    def stream(self, path, content_type, pieces):
        """Post the pieces of an answer as they come, and an error of theirs behind them; return the next event."""
        fields = b"Lambda-Runtime-Function-Response-Mode: streaming\r\nContent-Type: %s\r\n" % content_type
        fields += b"Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n"
        self.socket.sendall(self._head(b"POST", path, fields + b"Transfer-Encoding: chunked"))
        trailers = b""
        try:
            for piece in pieces:
                if isinstance(piece, str):
                    piece = piece.encode()
                if piece:
                    self.socket.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        except Exception as error:
            import base64

            tell(error)
            trailers = b"Lambda-Runtime-Function-Error-Type: %s\r\nLambda-Runtime-Function-Error-Body: %s\r\n" % (
                type(error).__name__.encode("ascii", "replace"),
                base64.b64encode(error_body(error)[:STREAMED_ERROR]),
            )
        sys.stdout.flush()
        self.socket.sendall(b"0\r\n%b\r\n" % trailers)
        self._answer()
        return self.next()

    def _head(self, method, path, framing):
        return b"%s %s%s HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n" % (method, PREFIX, path, self.host, framing)

    def _answer(self):
        data = self.rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        answer = {}
        for line in data[:end].split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            answer[name.strip().lower()] = value.strip()
        length = int(answer.get(b"content-length") or 0)
        parts, have = [data[end + 4 :]], len(data) - end - 4
        while have < length:
            parts.append(self._more())
            have += len(parts[-1])
        data = b"".join(parts)
        self.rest = data[length:]
        return answer, data[:length]

    def _more(self):
        chunk = self.socket.recv(1 << 18)
        if not chunk:
            raise OSError("the Runtime API has closed the connection")
        return chunk


class Context:
    """Lambda's context object (AWS, "Using the Lambda context object to retrieve Python function information")."""

    def __init__(self, headers):
        self.aws_request_id = headers.get(b"lambda-runtime-aws-request-id", b"").decode()
        self.invoked_function_arn = headers.get(b"lambda-runtime-invoked-function-arn", b"").decode()
        self.function_name = environ.get("AWS_LAMBDA_FUNCTION_NAME", "")
        self.function_version = environ.get("AWS_LAMBDA_FUNCTION_VERSION", "")
        self.memory_limit_in_mb = environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
        self.log_group_name = environ.get("AWS_LAMBDA_LOG_GROUP_NAME", "")
        self.log_stream_name = environ.get("AWS_LAMBDA_LOG_STREAM_NAME", "")
        self.identity = None
        self.client_context = None
        self._deadline = int(headers.get(b"lambda-runtime-deadline-ms") or 0)
        given = headers.get(b"lambda-runtime-client-context")
        if given:
            self.client_context = _ClientContext(given)

    def get_remaining_time_in_millis(self):
        return max(0, self._deadline - int(time() * 1000))

    def log(self, message):
        sys.stdout.write(str(message))


class _ClientContext:
    def __init__(self, given):
        import json

        value = json.loads(given)
        self.custom, self.env, self.client = value.get("custom"), value.get("env"), value.get("client")


class InitError(Exception):
    """Init failed in a way that has a name of its own."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def load(name):
    """The handler `module.function`; the module may be a path (`package/module.function`)."""
    path, dot, attribute = name.rpartition(".")
    if not dot or not path:
        raise InitError("Runtime.MalformedHandlerName", f"the handler {name!r} is not MODULE.FUNCTION")
    module_name = path.replace("/", ".")
    try:
        module = __import__(module_name, fromlist=["*"])
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        raise InitError("Runtime.UserCodeSyntaxError", f"{error.msg} in {where}") from error
    except ImportError as error:
        raise InitError("Runtime.ImportModuleError", f"Unable to import module '{module_name}': {error}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise InitError("Runtime.HandlerNotFound", f"Handler '{attribute}' missing on module '{module_name}'") from None


def error_body(error, kind=None):
    """Lambda's error object; the trace begins in the function's own code."""
    import json
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    while frames and frames[0].filename == SOURCE:
        del frames[0]
    message = str(error)
    return json.dumps(
        {
            "errorMessage": message[:100_000],
            "errorType": kind or type(error).__name__,
            "stackTrace": traceback.format_list(frames)[-50:],
        }
    ).encode()


def tell(error):
    """The traceback, on stderr."""
    import traceback

    sys.stdout.flush()
    traceback.print_exception(type(error), error, error.__traceback__)
    sys.stderr.flush()


def caller(handler):
    """`handler` as a plain function: an `async def` one runs on a loop that is kept."""
    code = getattr(getattr(handler, "__func__", handler), "__code__", None)
    if code is None or not code.co_flags & 0x80:  # inspect.CO_COROUTINE, without importing inspect
        return handler
    import asyncio

    loop = asyncio.new_event_loop()
    return lambda event, context: loop.run_until_complete(handler(event, context))


class _Defaults:
    """What the scanner of `_json` asks of a decoder."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}.__getitem__


def _refuse(value):
    raise TypeError


def loads(payload):
    """As `json.loads`, by its compiled half alone as long as the function does without the rest, which takes longer to
    import than the interpreter to start. What is not plain is the whole module's, its errors as well."""
    if "json" not in sys.modules:
        try:
            from _json import make_scanner

            text = payload.decode("utf-8", "surrogatepass")
            value, end = make_scanner(_Defaults)(text, len(text) - len(text.lstrip(WHITE)))
            if not text[end:].strip(WHITE):
                return value
        except Exception:
            pass
    import json

    return json.loads(payload)


def dumps(value):
    """As `json.dumps(value).encode()`, likewise."""
    if "json" not in sys.modules:
        try:
            from _json import encode_basestring_ascii, make_encoder

            encode = make_encoder({}, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)
            return "".join(encode(value, 0)).encode()
        except Exception:
            pass
    import json

    return json.dumps(value).encode()


def streamed(result):
    """(content type, pieces) where a handler returned what is iterated rather than marshalled: a generator of bytes or
    text, whose first piece may be a dict: then that is the answer's head (statusCode, headers, cookies) over HTTP. None
    for any other value."""
    if not hasattr(result, "send") or not hasattr(result, "throw"):
        return None
    first = next(result, b"")
    if isinstance(first, dict):
        return b"application/vnd.awslambda.http-integration-response", _chain(dumps(first) + bytes(8), result)
    return b"application/octet-stream", _chain(first, result)


def _chain(first, rest):
    yield first
    yield from rest


def serve(api, handler):
    """Take events one after the other, for ever."""
    loads(b"0")  # what it needs is imported now, in the init
    handler = caller(handler)
    headers, payload = api.next()
    while True:
        request_id = headers[b"lambda-runtime-aws-request-id"]
        trace = headers.get(b"lambda-runtime-trace-id")
        if trace:
            environ["_X_AMZN_TRACE_ID"] = trace.decode("latin-1")
        answer, body, pieces, kind = b"invocation/%s/response" % request_id, None, None, None
        try:
            result = handler(loads(payload), Context(headers))
            pieces = streamed(result)
            if pieces is None:
                kind = "Runtime.MarshalError"
                body = dumps(result)
        except Exception as error:
            if kind is not None:
                message = f"Unable to marshal response: {error}"
                error = TypeError(message)
            tell(error)
            answer, body = b"invocation/%s/error" % request_id, error_body(error, kind)
        sys.stdout.flush()
        headers, payload = api.respond(answer, body) if pieces is None else api.stream(answer, *pieces)


def wait_for_assignment():
    """Import ahead, say so, and wait to be told which function this process is to become.

    From here on everything is as after an ordinary start: environment, time zone, working folder, open descriptors.
    """
    import os

    for name in PRELOADED:
        __import__(name)
    json, logging, time_module = sys.modules["json"], sys.modules["logging"], sys.modules["time"]
    names = sorted({name.partition(".")[0] for name in sys.modules})
    os.write(STEM_CHANNEL, json.dumps(names).encode() + b"\n")
    assignment = b""
    while chunk := os.read(STEM_CHANNEL, 1 << 18):
        assignment += chunk
    os.close(STEM_CHANNEL)
    if not assignment:  # the server has no use for it, or has ended
        os._exit(0)
    told = json.loads(assignment)
    environ.clear()
    environ.update(told["env"])
    time_module.tzset()
    os.chdir(told["workdir"])
    now = time_module.time()  # what log records' relativeCreated counts from; nanoseconds since Python 3.13
    logging._startTime = now if isinstance(logging._startTime, float) else int(now * 1e9)


def take_secrets():
    """Put the secrets that are variables of the environment there, from their files: `FAAS_SECRETS` says which.

    No process is started with a value in its environment, where others on the machine could read it.
    """
    for pair in environ.pop("FAAS_SECRETS", "").split(","):
        variable, _, name = pair.partition("=")
        if name:
            with open(f"/run/secrets/{name}", encoding="utf-8", newline="") as file:
                environ[variable] = file.read()


def main():
    if "FAAS_STEM" in environ:
        wait_for_assignment()
    take_secrets()
    sys.path[:0] = [environ.get("LAMBDA_TASK_ROOT") or "/var/task", DEPENDENCIES]
    sys.stdout.reconfigure(line_buffering=True)
    app = environ.get("FAAS_APP")
    if app:
        sys.path.insert(0, SOURCE.rpartition("/")[0])
        import http_server

        del sys.path[0]
        http_server.main(app)
        return
    api = RuntimeApi(environ["AWS_LAMBDA_RUNTIME_API"])
    try:
        handler = load(environ.get("_HANDLER", ""))
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        kind = error.kind if isinstance(error, InitError) else f"Runtime.{type(error).__name__}"
        cause = error.__cause__ or error
        tell(cause)
        api.request(b"POST", b"init/error", error_body(error, kind))
        sys.exit(1)
    serve(api, handler)


if __name__ == "__main__":
    main()
