"""Serves a Python web application on `$PORT` inside a sandbox: ASGI (HTTP and lifespan) or WSGI, found out by looking.

Its only client is the gateway, which sends clean HTTP/1.1 and keeps connections alive; so it is small.
ASGI: asgi.readthedocs.io, version 3. WSGI: PEP 3333.
"""

import asyncio
import inspect
import io
import os
import signal
import sys
import traceback

HEAD_LIMIT = 128 * 1024
HIGH_WATER = 64 * 1024  # bytes of a request body that wait before reading pauses
MOST_THREADS = 128  # of a WSGI application: half of the tasks that a sandbox may have
REASONS = {200: "OK", 201: "Created", 204: "No Content", 302: "Found", 304: "Not Modified", 400: "Bad Request"}
NO_BODY = {204, 304}


def load(name):
    """The application `module:object`; `object` may be a factory's result or an attribute path."""
    module_name, _, attribute = name.partition(":")
    target = __import__(module_name, fromlist=["*"])
    for part in (attribute or "app").split("."):
        target = getattr(target, part)
    return target


def is_asgi(app):
    """An ASGI application is a coroutine function of (scope, receive, send), or an object whose call is one."""
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(getattr(type(app), "__call__", None)):  # noqa: B004
        return True
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) == 3 or [p.name for p in required[:1]] == ["scope"]


class Request:
    """A parsed head and a body that is read on demand."""

    def __init__(self, method, target, headers, reader, writer):
        self.method, self.target, self.headers = method, target, headers
        self.reader, self.writer = reader, writer
        fields = dict(headers)
        self.length = int(fields.get(b"content-length") or 0)
        self.chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
        self.done = not self.chunked and not self.length

    async def read(self):
        """Some bytes of the body; empty at its end."""
        if self.done:
            return b""
        if self.chunked:
            size = int((await self.reader.readline()).split(b";")[0], 16)
            data = await self.reader.readexactly(size) if size else b""
            await self.reader.readline()
            self.done = not size
            return data
        data = await self.reader.read(min(self.length, HIGH_WATER))
        if not data:
            raise ConnectionError("the request ended early")
        self.length -= len(data)
        self.done = not self.length
        return data

    async def drain(self):
        while not self.done:
            await self.read()


class Response:
    """Writes one answer: with its length where the application said it, else chunked."""

    def __init__(self, request):
        self.request = request
        self.started = self.ended = False
        self.chunked = False
        self.bare = request.method == "HEAD"

    def start(self, status, headers):
        """`headers`: pairs of bytes."""
        names = {name.lower() for name, _ in headers}
        self.bare = self.bare or status in NO_BODY or status < 200
        self.chunked = not self.bare and b"content-length" not in names
        lines = [b"HTTP/1.1 %d %s" % (status, REASONS.get(status, "Status").encode())]
        lines += [b"%s: %s" % (n, v) for n, v in headers if n.lower() not in (b"transfer-encoding", b"connection")]
        if self.chunked:
            lines.append(b"Transfer-Encoding: chunked")
        self.head = b"\r\n".join(lines) + b"\r\n\r\n"
        self.started = True

    async def write(self, data, last):
        parts, self.head = [self.head], b""
        if not self.bare:
            if not self.chunked:
                parts.append(data)
            elif data:
                parts.append(b"%x\r\n%s\r\n" % (len(data), data))
            if last and self.chunked:
                parts.append(b"0\r\n\r\n")
        self.request.writer.write(b"".join(parts))
        self.ended = last
        await self.request.writer.drain()


async def read_head(reader):
    """(method, target, headers) or None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    lines = head[:-4].split(b"\r\n")
    method, target, _ = lines[0].decode("latin-1").split(" ", 2)
    headers = []
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        headers.append((name.strip().lower(), value.strip()))
    return method, target, headers


class Asgi:
    """One ASGI application."""

    def __init__(self, app):
        self.app = app
        self.state = {}
        self.lifespan = None

    async def startup(self):
        """The lifespan protocol; an application that does not know it raises, and is served all the same."""
        inbox, started, stopped = asyncio.Queue(), asyncio.Event(), asyncio.Event()
        failure = []

        async def send(message):
            if message["type"].endswith(".failed"):
                failure.append(message.get("message", ""))
            (started if "startup" in message["type"] else stopped).set()

        async def run():
            scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
            try:
                await self.app(scope, inbox.get, send)
            except Exception:
                if started.is_set():
                    traceback.print_exc()
            finally:
                started.set()
                stopped.set()

        self.lifespan = (asyncio.ensure_future(run()), inbox, stopped)
        await inbox.put({"type": "lifespan.startup"})
        await started.wait()
        if failure:
            raise RuntimeError(f"the application's startup failed: {failure[0]}")

    async def shutdown(self):
        task, inbox, stopped = self.lifespan
        if not task.done():
            await inbox.put({"type": "lifespan.shutdown"})
            await stopped.wait()

    async def __call__(self, request):
        path, _, query = request.target.partition("?")
        from urllib.parse import unquote

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": dict(request.headers).get(b"x-forwarded-proto", b"http").decode("latin-1"),
            "path": unquote(path),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": request.headers,
            "client": None,
            "server": ("127.0.0.1", int(os.environ["PORT"])),
            "state": dict(self.state),
        }
        response = Response(request)
        gone = asyncio.Event()

        async def receive():
            if request.done and receive.told:
                await gone.wait()
                return {"type": "http.disconnect"}
            receive.told = True
            try:
                data = await request.read()
            except (OSError, asyncio.IncompleteReadError):
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": data, "more_body": not request.done}

        receive.told = False

        async def send(message):
            if message["type"] == "http.response.start":
                response.start(message["status"], [(bytes(n), bytes(v)) for n, v in message.get("headers", ())])
            elif message["type"] == "http.response.body":
                last = not message.get("more_body", False)
                await response.write(message.get("body", b""), last)
                if last:
                    gone.set()

        await self.app(scope, receive, send)
        return response


class Wsgi:
    """One WSGI application, in a pool of threads: one for each request at once."""

    def __init__(self, app, threads):
        from concurrent.futures import ThreadPoolExecutor

        self.app = app
        self.threads = ThreadPoolExecutor(threads)

    async def startup(self): ...

    async def shutdown(self): ...

    async def __call__(self, request):
        body = io.BytesIO()
        while chunk := await request.read():
            body.write(chunk)
        body.seek(0)
        response = Response(request)
        loop = asyncio.get_running_loop()

        def send(data, last):
            asyncio.run_coroutine_threadsafe(response.write(data, last), loop).result()

        await loop.run_in_executor(self.threads, self._run, request, body, response, send)
        return response

    def _run(self, request, body, response, send):
        path, _, query = request.target.partition("?")
        from urllib.parse import unquote_to_bytes

        environ = {
            "REQUEST_METHOD": request.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": os.environ["PORT"],
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": dict(request.headers).get(b"x-forwarded-proto", b"http").decode("latin-1"),
            "wsgi.input": body,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "CONTENT_LENGTH": str(body.getbuffer().nbytes),
        }
        for name, value in request.headers:
            key = name.decode("latin-1").upper().replace("-", "_")
            if key == "CONTENT_TYPE":
                environ[key] = value.decode("latin-1")
            elif key not in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
                known = environ.get("HTTP_" + key)
                text = value.decode("latin-1")
                environ["HTTP_" + key] = f"{known},{text}" if known else text

        def start_response(status, headers, exc_info=None):
            if exc_info and response.ended:
                raise exc_info[1].with_traceback(exc_info[2])
            pairs = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in headers]
            response.start(int(status.split(" ", 1)[0]), pairs)
            return lambda data: send(data, False)

        result = self.app(environ, start_response)
        try:
            for data in result:
                if data:
                    send(data, False)
            send(b"", True)
        finally:
            if hasattr(result, "close"):
                result.close()


async def connection(app, reader, writer):
    try:
        while (head := await read_head(reader)) is not None:
            request = Request(*head, reader, writer)
            if (b"expect", b"100-continue") in request.headers:
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            response = None
            try:
                response = await app(request)
            except (ConnectionError, asyncio.IncompleteReadError):
                return
            except Exception:
                traceback.print_exc()
                sys.stderr.flush()
            if response is None or not response.started:
                writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
            elif not response.ended:
                return  # half an answer: the cut connection says so
            await request.drain()
            await writer.drain()
    except (ConnectionError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def serve(loaded):
    threads = min(int(os.environ.get("FAAS_CONCURRENCY") or 1), MOST_THREADS)
    app = Asgi(loaded) if is_asgi(loaded) else Wsgi(loaded, threads)
    await app.startup()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    server = await asyncio.start_server(
        lambda reader, writer: connection(app, reader, writer), "127.0.0.1", int(os.environ["PORT"]), limit=HEAD_LIMIT
    )
    await stopping.wait()
    server.close()
    await app.shutdown()


def main(name):
    try:
        loaded = load(name)
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    asyncio.run(serve(loaded))
