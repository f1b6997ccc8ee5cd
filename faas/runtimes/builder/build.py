"""Builds wheels: what runs inside the sandbox of one build, as `python3 -I -B build.py`.

It takes one connection, gets files and pip's arguments over it, runs `pip wheel`, and gives back the wheels. pip knows
one index only: this program's own, on loopback, which asks whoever is at the other end of the connection for each page
and file. Addresses and credentials of real indexes never come here.

Each message is 4 bytes of length, one of kind, and the rest (`faas.build.messages` is the other end).
"""

import collections
import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading

PORT = 8080
INDEX_PORT = 8090
PIP = "/opt/build/pip"
INPUT, OUTPUT, HOME = "/tmp/in", "/tmp/out", "/tmp/home"
MESSAGE_BYTES = 1 << 20
CHUNK = 1 << 18
LINES = 5000  # of output that are told; the last ones are told in any case
LINE_CHARACTERS = 500
TAIL = 40


class Wire:
    """The connection. Writing is safe from several threads; reading is whoever has a question open."""

    def __init__(self, connection):
        self._file = connection.makefile("rb")
        self._connection = connection
        self._writing = threading.Lock()

    def read(self):
        """(kind, content). Raises EOFError."""
        size = int.from_bytes(self._exactly(4), "big")
        if not 0 < size <= MESSAGE_BYTES:
            raise EOFError
        message = self._exactly(size)
        return message[:1], message[1:]

    def _exactly(self, size):
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError
        return data

    def write(self, kind, content):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        with self._writing:
            self._connection.sendall((len(content) + 1).to_bytes(4, "big") + kind + content)


def wish(wire):
    """Write the files that come to INPUT; the last message is what to do."""
    while True:
        kind, content = wire.read()
        told = json.loads(content)
        if kind == b"G":
            return told
        parts = told["name"].split("/")
        if kind != b"F" or any(part in ("", ".", "..") for part in parts):
            raise EOFError
        path = os.path.join(INPUT, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            left = told["size"]
            while left > 0:
                _, data = wire.read()
                file.write(data)
                left -= len(data)


class Index:
    """The only index that pip knows. `passed` are the digests of the files that came through it."""

    def __init__(self, wire):
        self.passed = set()
        asking = threading.Lock()
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with asking:
                    wire.write(b"Q", {"path": self.path})
                    head = json.loads(wire.read()[1])
                    self.send_response(head["status"])
                    self.send_header("Content-Type", head["type"])
                    self.send_header("Content-Length", str(head["size"]))
                    self.end_headers()
                    index.passed.add(self._pass_on(head["size"]))

            def _pass_on(self, left):
                digest, listens = hashlib.sha256(), True
                while left > 0:
                    _, data = wire.read()
                    left -= len(data)
                    digest.update(data)
                    try:
                        if listens:
                            self.wfile.write(data)
                    except OSError:  # pip has gone; what was asked for comes all the same
                        listens, self.close_connection = False, True
                return digest.hexdigest()

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", INDEX_PORT), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()


def run_pip(wire, told):
    """(exit status, the last lines)."""
    for folder in (INPUT, OUTPUT, HOME):
        os.makedirs(folder, exist_ok=True)
    command = [sys.executable, PIP, "wheel", "--no-input", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--wheel-dir", OUTPUT, *told["arguments"]]
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",
        "PIP_CONFIG_FILE": os.devnull,
        "SOURCE_DATE_EPOCH": "315532800",  # the least that a zip archive can say: the same wheel each time
        **told.get("environment", {}),
    }
    tail = collections.deque(maxlen=TAIL)
    running = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, cwd=INPUT
    )
    for number, line in enumerate(running.stdout):
        text = line[: 4 * LINE_CHARACTERS].decode("utf-8", "replace").rstrip()[:LINE_CHARACTERS]
        tail.append(text)
        if number < LINES and text:
            wire.write(b"L", text.encode())
    return running.wait(), list(tail)


def give_back(wire, passed):
    for name in sorted(os.listdir(OUTPUT)):
        path = os.path.join(OUTPUT, name)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            known = digest in passed  # the other end has it
            wire.write(b"W", {"name": name, "size": os.path.getsize(path), "sha256": digest, "known": known})
            file.seek(0)
            while not known and (data := file.read(CHUNK)):
                wire.write(b"D", data)


def main():
    with socket.create_server(("127.0.0.1", PORT)) as listener:
        connection, _ = listener.accept()
    wire = Wire(connection)
    told = wish(wire)
    index = Index(wire)
    status, tail = run_pip(wire, told)
    if status == 0:
        give_back(wire, index.passed)
    wire.write(b"X", {"ok": status == 0, "tail": tail, "compiler": shutil.which("gcc") is not None})


if __name__ == "__main__":
    try:
        main()
    except EOFError:  # whoever wanted it has gone
        raise SystemExit(1) from None
