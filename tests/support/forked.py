"""The command line in a process of its own that need not read its modules: it is forked off one that has them.

To read them is nearly all that a command costs, and most of a server's start, and tests run hundreds. What a new
interpreter does for a command is tested by those that start one (`tests/support/cli.py`, the how-tos, deploy/up).
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import faas.cli

ROOT = Path(__file__).resolve().parents[2]


def run(args: Sequence[str], env: Mapping[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    """`faas ARGS…` in this process's folder, without input: as `subprocess.run` does it, with what it wrote as text."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as out,
        tempfile.TemporaryFile("w+", errors="replace") as err,
    ):
        process = Forked(args, env, out, err)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(["faas", *args], code, out.read(), err.read())


class Forked:
    """A running `faas ARGS…`, without input; what `subprocess.Popen` has, as far as tests ask for it."""

    def __init__(self, args: Sequence[str], env: Mapping[str, str], out: IO[Any], err: IO[Any]) -> None:
        self.args = args
        self.returncode: int | None = None
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(_forker())
        with tempfile.TemporaryFile("w+") as question, open(os.devnull) as nothing:
            json.dump({"args": args, "env": dict(env), "cwd": str(Path.cwd())}, question)
            question.flush()
            files = [stream.fileno() for stream in (question, nothing, out, err)]
            socket.send_fds(self._connection, [b"?"], files)
            self.pid = int(self._connection.recv(32))

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._connection.recv(32))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(["faas", *self.args], timeout or 0) from None
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


@functools.cache
def _forker() -> str:
    """The address of the one that this process has started."""
    address = f"\0faas-tests-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        command = [sys.executable, "-m", "tests.support.forked", str(listener.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], cwd=ROOT)
    atexit.register(_end, process)
    return address


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()  # what it waits for
    process.wait(10)


class Forker:
    """Forks a child for each connection to `listener`, and tells there its pid and how it ended."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.asking: dict[int, socket.socket] = {}  # by the child's pid

    def serve(self) -> list[int]:
        """Until standard input ends, with whoever started this: []. In a child: the files that it was sent."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this is told as well
        signal.signal(signal.SIGCHLD, lambda *_: self.reap())
        with self.listener, selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self.listener, selectors.EVENT_READ)
            while not any(key.fd == 0 for key, _ in selector.select()):
                if files := self.fork():
                    return files
        return []

    def fork(self) -> list[int]:
        connection, _ = self.listener.accept()
        _, files, _, _ = socket.recv_fds(connection, 1, 4)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until the child is known here
        pid = os.fork()
        self.asking[pid] = connection
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for asked in self.asking.values():
                asked.close()
        else:
            connection.send(b"%d" % pid)
            for file in files:
                os.close(file)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        return [] if pid else list(files)

    def reap(self) -> None:
        while self.asking:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with self.asking.pop(pid) as connection:
                try:
                    connection.send(b"%d" % os.waitstatus_to_exitcode(status))
                except OSError:
                    continue  # nobody waits any more


def become(question: int, *streams: int) -> NoReturn:
    """The command that `question` names, on these standard streams."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(question) as file:
        file.seek(0)
        asked = json.load(file)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(asked["env"])
    time.tzset()
    os.chdir(asked["cwd"])
    sys.argv[1:] = asked["args"]
    sys.exit(faas.cli.main())


def read_modules() -> None:
    """All that commands import, and what the server does."""
    for module in pkgutil.iter_modules(faas.cli.__path__, "faas.cli."):
        if module.name != "faas.cli.__main__":
            importlib.import_module(module.name)
    importlib.import_module("faas.server.main")
    gc.freeze()  # a collection in a child would copy what it only looks at


if __name__ == "__main__":
    read_modules()
    if files := Forker(socket.socket(fileno=int(sys.argv[1]))).serve():
        become(*files)
