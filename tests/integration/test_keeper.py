"""The keeper: listening sockets that outlive the server, and servers that take them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas import handover
from faas.handover import Handed
from faas.listener import bound, listen
from faas.settings import Address
from tests.support.processes import children

# The smallest server that takes and hands over as `faas serve` does; it answers with its pid.
SERVER = """
import asyncio, os, signal, sys
from pathlib import Path
from faas.handover import Handed, Successor
from faas.listener import bound, end, listen
from faas.settings import Address

async def serve(address, ready):
    successor = Successor()
    with Handed.received() as handed:
        listener = handed.take("public", address) or listen(address)
    stop, busy = asyncio.Event(), set()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    successor.listen({"public": listener}, stop.set)

    def take():
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        task = loop.create_task(answer(connection))
        busy.add(task)  # at once: it is answered, whatever comes next
        task.add_done_callback(busy.discard)

    async def answer(connection):
        with connection:
            await loop.sock_recv(connection, 100)
            await loop.sock_sendall(connection, str(os.getpid()).encode())

    loop.add_reader(listener, take)
    ready.write_text(f"{os.getpid()} {bound(listener).port}")
    await stop.wait()
    loop.remove_reader(listener)
    if not successor.comes:
        end(listener)
    listener.close()
    if busy:
        await asyncio.wait(busy)

folder = Path(sys.argv[1])
if (folder / "broken").exists():
    (folder / "broken").unlink()
    sys.exit(7)
asyncio.run(serve(Address("127.0.0.1", 0), folder / "ready"))
"""


class Kept:
    """A keeper with that server, and what it said last."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        (folder / "server.py").write_text(SERVER)
        command = [
            sys.executable,
            "-P",
            "-m",
            "faas.cli.keeper",
            sys.executable,
            str(folder / "server.py"),
            str(folder),
        ]
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)})
        self.server, self.port = self.ready()

    def ready(self, other_than: int = 0) -> tuple[int, int]:
        """(pid, port) of a server that is not `other_than`."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            words = (self.folder / "ready").read_text().split() if (self.folder / "ready").exists() else []
            if len(words) == 2 and int(words[0]) != other_than:
                return int(words[0]), int(words[1])
            time.sleep(0.01)
        raise AssertionError("no server came")

    def ask(self) -> int:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(b"who\n")
            return int(connection.makefile().read())

    def has_server(self) -> bool:
        return bool(children(self.process.pid))

    def tell(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def ended(self, pid: int) -> None:
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def kept(tmp_path: Path, project_root: Path) -> Iterator[Kept]:
    made = Kept(tmp_path, project_root)
    yield made
    if made.process.poll() is None:
        made.tell(signal.SIGTERM)
    made.process.wait(20)


def test_no_connection_is_refused_over_restarts_and_every_one_is_answered(kept: Kept) -> None:
    answers: list[int] = []
    enough = threading.Event()

    def call() -> None:
        while not enough.is_set():
            answers.append(kept.ask())

    calling = threading.Thread(target=call)

    def answered_by(pid: int) -> None:
        deadline = time.monotonic() + 20
        while pid not in answers:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    calling.start()
    pids = [kept.server]
    answered_by(pids[-1])
    for _ in range(2):
        kept.tell(signal.SIGHUP)
        pids.append(kept.ready(pids[-1])[0])
        answered_by(pids[-1])
    enough.set()
    calling.join()
    assert set(answers) == set(pids), "an exception in the thread would have ended it early"


def test_clients_wait_while_the_sockets_are_held_and_what_failed_to_start_gives_way(kept: Kept) -> None:
    kept.tell(signal.SIGUSR2)
    kept.ended(kept.server)
    answers: list[int] = []
    waiting = threading.Thread(target=lambda: answers.append(kept.ask()))
    waiting.start()
    (kept.folder / "broken").touch()
    kept.tell(signal.SIGHUP)
    deadline = time.monotonic() + 20
    while (kept.folder / "broken").exists() or kept.has_server():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert kept.process.poll() is None
    assert answers == []
    kept.tell(signal.SIGHUP)
    waiting.join(20)
    assert answers == [kept.ready(kept.server)[0]]


@pytest.mark.parametrize("to", ["keeper", "server"])
def test_a_plain_stop_ends_both_and_refuses_clients(kept: Kept, to: str) -> None:
    os.kill(kept.process.pid if to == "keeper" else kept.server, signal.SIGTERM)
    assert kept.process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        kept.ask()


def test_a_server_that_crashes_ends_the_keeper_with_its_code_so_that_both_are_started_anew(kept: Kept) -> None:
    os.kill(kept.server, signal.SIGKILL)
    assert kept.process.wait(20) == 128 + signal.SIGKILL


def test_sockets_of_systemds_units_are_taken_by_where_they_listen_and_others_are_ended() -> None:
    with listen(Address("127.0.0.1", 0)) as first, listen(Address("127.0.0.1", 0)) as second:
        port = bound(first).port
        with Handed({"web.socket": first.dup(), "old.socket": second.dup()}) as handed:
            assert handed.take("public", Address("127.0.0.1", 1)) is None
            taken = handed.take("public", Address("127.0.0.1", port))
            assert taken is not None
        taken.close()
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(bound_of(second), timeout=5)


def bound_of(listener: socket.socket) -> tuple[str, int]:
    host, port = listener.getsockname()[:2]
    return str(host), int(port)


def test_what_is_another_processs_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert handover.received() == {}
