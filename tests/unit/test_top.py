"""`/v1/top` and `faas top`: who sees what, rates, one look for all who watch, and a terminal that is left as it was."""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faas.cli import top
from tests.support.cli import CommandLine
from tests.support.control import Control, control, until
from tests.support.fake_api import FakeApi, Reply, refusal

MB = 1_048_576
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        yield running


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


async def looked(server: Control, query: str = "", token: str | None = None) -> Any:
    answered = await server.call("GET", f"/v1/top{query}", token=token)
    assert answered.status == 200, answered.body
    return answered.json()


# The route


async def test_it_tells_instances_memory_queue_and_counts_of_each_function(server: Control) -> None:
    await server.deploy("hello", scale={"max": 1}, queue_timeout=0)
    gate = asyncio.Event()
    answer = server.worker.on_invoke

    async def held(*args: Any) -> Any:
        await gate.wait()
        return await answer(*args)

    server.worker.on_invoke = held
    call = asyncio.create_task(server.call("POST", "/v1/functions/hello/invocations", b"{}"))
    await until(lambda: server.gateway.scaler.in_flight())
    await until(lambda: any(n for n in server.gateway.scaler.in_flight().values()))
    assert (await server.call("POST", "/function/hello", b"{}")).status == 429
    (row,) = (await looked(server))["functions"]
    assert row == {
        "name": "hello", "namespace": "default", "queue": 0, "instances": {"starting": 0, "idle": 0, "busy": 1},
        "memory_bytes": 10 * MB, "charged_bytes": 128 * MB, "cpus": 0.25,
        "invocations": 0, "errors": 0, "refused": 1,
    }  # fmt: skip
    gate.set()
    assert (await call).status == 200
    await asyncio.sleep(0.6)
    (row,) = (await looked(server))["functions"]
    assert (row["invocations"], row["instances"]["idle"]) == (1, 1)


async def test_invocations_in_front_of_the_functions_limit_are_its_queue(server: Control) -> None:
    await server.deploy("hello", scale={"max": 1}, queue_timeout=30)
    gate = asyncio.Event()
    answer = server.worker.on_invoke

    async def held(*args: Any) -> Any:
        await gate.wait()
        return await answer(*args)

    server.worker.on_invoke = held
    calls = [asyncio.create_task(server.call("POST", "/function/hello", b"{}")) for _ in range(4)]
    await until(lambda: 4 in server.gateway.scaler.in_flight().values())
    (row,) = (await looked(server))["functions"]
    assert (row["queue"], row["instances"]["busy"]) == (3, 1)
    gate.set()
    assert {answered.status for answered in await asyncio.gather(*calls)} == {200}


async def test_a_function_that_was_never_called_and_has_no_instance_is_not_shown(server: Control) -> None:
    await server.deploy("hello")
    await server.call("POST", "/v1/functions/hello/scale", {"instances": 0})
    assert (await looked(server))["functions"] == []


async def test_a_namespaces_reader_sees_that_namespace_and_nothing_of_the_machine(server: Control) -> None:
    await server.deploy("hello")
    await server.deploy("hello", namespace="team")
    everything = await looked(server)
    assert [(f["namespace"], f["name"]) for f in everything["functions"]] == [("default", "hello"), ("team", "hello")]
    assert everything["memory"]["charged_bytes"] == {"invoked": 256 * MB, "job": 0, "service": 0, "stem": 0}
    assert (everything["memory"]["budget_bytes"], everything["memory"]["evictions"]) == (1024 * MB, 3)
    seen = await looked(server, token=await server.a_token("viewer", "team"))
    assert ([f["namespace"] for f in seen["functions"]], seen["memory"]) == (["team"], None)
    assert [f["namespace"] for f in (await looked(server, "?namespace=team"))["functions"]] == ["team"]


async def test_the_machine_is_looked_at_twice_a_second_at_most_however_many_watch(server: Control) -> None:
    await server.deploy("hello")
    began = time.monotonic()
    first = await looked(server)
    for _ in range(5):
        for seen in await asyncio.gather(*(looked(server) for _ in range(10))):
            assert seen["at"] >= first["at"]
    assert server.worker.looks <= 1 + (time.monotonic() - began) / 0.5


# What is made of it


def a_look(at: float, *rows: dict[str, Any], memory: bool = True) -> dict[str, Any]:
    machine = {"budget_bytes": 600 * MB, "charged_bytes": {"invoked": 450 * MB, "job": 0}, "waiting": 2, "evictions": 7}
    return {"at": at, "memory": machine if memory else None, "functions": list(rows)}


def a_row(name: str = "hello", *, busy: int = 1, invocations: int = 0, errors: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "namespace": "default", "queue": 4, "instances": {"starting": 0, "idle": 2, "busy": busy},
        "memory_bytes": 30 * MB, "charged_bytes": 384 * MB, "cpus": 0.5, "invocations": invocations, "errors": errors,
        "refused": 0, **more,
    }  # fmt: skip


def test_rates_are_differences_over_the_time_between_two_looks() -> None:
    before = a_look(100.0, a_row(invocations=10, errors=1))
    (row,) = top.compared(a_look(102.0, a_row(invocations=15, errors=3)), before).functions
    assert (row["requests_per_second"], row["new_errors"], row["new_refused"]) == (2.5, 2, 0)
    (row,) = top.compared(before, None).functions
    assert (row["requests_per_second"], row["new_errors"]) == (None, None)
    (row,) = top.compared(before, before).functions  # the server's answer of the same moment
    assert (row["requests_per_second"], row["new_errors"]) == (None, 0)


def test_a_count_that_began_anew_and_a_function_that_is_new_count_from_zero() -> None:
    before = a_look(100.0, a_row(invocations=1000))
    after = a_look(101.0, a_row(invocations=3), a_row("new", invocations=5))
    rates = {row["name"]: row["requests_per_second"] for row in top.compared(after, before).functions}
    assert rates == {"hello": 3.0, "new": 5.0}


def test_the_busiest_come_first() -> None:
    rows = [a_row("idle", busy=0), a_row("quick", busy=0, invocations=9), a_row("busy", busy=3)]
    before = a_look(0.0, a_row("idle"), a_row("quick"), a_row("busy"))
    ordered = top.compared(a_look(1.0, *rows), before).functions
    assert [row["name"] for row in ordered] == ["busy", "quick", "idle"]


@pytest.mark.parametrize("columns", [1, 20, 80, 300])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 50])
def test_a_frame_is_never_larger_than_the_terminal(columns: int, rows: int) -> None:
    look = top.compared(a_look(1.0, *(a_row(f"function-{n}") for n in range(20))), None)
    for colour in (True, False):
        shown = top.frame(look, columns, rows, colour=colour)
        assert shown.startswith("\x1b[H")
        assert shown.endswith("\x1b[J")
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).split("\n")
        assert len(lines) <= rows
        assert max(map(len, lines)) <= columns
        if rows == 5 and columns == 80:
            assert lines[-1] == "… and 18 more"


def test_the_first_line_shows_the_budget_and_has_a_bar_only_where_it_may() -> None:
    memory = a_look(0.0)["memory"]
    assert top.head(memory, bar=True).startswith("[" + "#" * 22 + "." * 8 + "]  memory  75%  450 MB of 600 MB")
    assert top.head(memory, bar=False).startswith("memory  75%")
    assert top.head(memory, bar=False).endswith("7 evictions  2 starts wait for memory")
    assert top.head(None, bar=True) == ""


# The command


def test_off_a_terminal_it_prints_one_table_of_two_looks(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/top"] = Reply(a_look(1.0, a_row()))
    done = faas("top", "--namespace", "team")
    memory, titles, row = done.out.splitlines()
    assert memory == "memory  75%  450 MB of 600 MB  7 evictions  2 starts wait for memory"
    assert titles.split() == [title for title, _ in top.COLUMNS]
    assert row.split() == ["hello", "1", "2", "0", "4", "30.0", "MB", "384", "MB", "0.50", "-", "0", "0"]
    assert [seen.query for seen in faas.api.seen] == [{"namespace": "team"}] * 2
    assert "\x1b" not in done.out


def test_as_json_it_has_exact_figures_and_as_names_the_names(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/top"] = Reply(a_look(1.0, a_row(), memory=False))
    told = json.loads(faas("top", "-o", "json").out)
    assert told["memory"] is None
    assert told["functions"][0]["charged_bytes"] == 384 * MB
    assert faas("top", "-o", "name").out == "hello\n"
    assert faas("top").out.splitlines()[0].startswith("FUNCTION")


class Terminal:
    """A command on a terminal of its own; what it shows is collected."""

    def __init__(self, command: list[str], env: dict[str, str], columns: int = 100, rows: int = 30) -> None:
        self.controller, self.other = pty.openpty()
        self.resize(columns, rows, tell=False)
        self.before = termios.tcgetattr(self.other)
        self.process = subprocess.Popen(command, stdin=self.other, stdout=self.other, stderr=self.other, env=env)
        self.shown, self._decoder = "", codecs.getincrementaldecoder("utf-8")()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self.controller, 65_536)
            except OSError:
                return
            self.shown += self._decoder.decode(chunk)

    def resize(self, columns: int, rows: int, *, tell: bool = True) -> None:
        fcntl.ioctl(self.controller, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if tell:
            self.process.send_signal(signal.SIGWINCH)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.01)

    @property
    def frames(self) -> int:
        return self.shown.count("\x1b[J")

    def end(self, number: int | None = None) -> int:
        """The exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        assert termios.tcgetattr(self.other) == self.before
        os.close(self.other)
        self.reader.join(5)
        os.close(self.controller)
        return code


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_on_a_terminal_it_is_drawn_each_second_and_leaves_the_terminal_as_it_was(
    faas: CommandLine, colour: bool, number: int, code: int
) -> None:
    faas.api.replies["GET", "/v1/top"] = Reply(a_look(1.0, a_row()))
    env = faas.environment({"TERM": "xterm"} if colour else {"TERM": "xterm", "NO_COLOR": "1"})
    terminal = Terminal(faas.command("top"), env)
    terminal.wait_for(lambda: terminal.frames >= 3)
    assert terminal.end(number) == code
    assert terminal.shown.startswith(ENTER)
    assert terminal.shown.rstrip().endswith(LEAVE)
    assert terminal.shown.count(ENTER) == terminal.shown.count(LEAVE) == 1
    assert ("\x1b[1m" in terminal.shown) == colour
    assert ("[###" in terminal.shown) == colour
    assert "hello" in terminal.shown
    assert "Traceback" not in terminal.shown


def test_a_terminal_that_changes_its_size_is_drawn_anew_at_once(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/top"] = Reply(a_look(1.0, *(a_row(f"function-{n}") for n in range(20))))
    terminal = Terminal(faas.command("top"), faas.environment({"TERM": "xterm"}), rows=30)
    terminal.wait_for(lambda: "function-19" in terminal.shown)
    frames, looks, began = terminal.frames, len(faas.api.seen), time.monotonic()
    terminal.resize(40, 6)
    terminal.wait_for(lambda: "… and 17 more" in terminal.shown)
    assert terminal.frames > frames
    assert len(faas.api.seen) - looks <= 1 + (time.monotonic() - began)  # no look but those that time brings
    assert terminal.end(signal.SIGINT) == 130


def test_a_server_that_goes_away_is_told_on_the_own_screen(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/top"] = Reply(a_look(1.0, a_row()))
    terminal = Terminal(faas.command("top"), faas.environment({"TERM": "xterm"}))
    terminal.wait_for(lambda: terminal.frames >= 1)
    faas.api.replies["GET", "/v1/top"] = refusal(503, "ShuttingDown", "the server is shutting down")
    assert terminal.end() == 5
    assert "the server is shutting down" in terminal.shown.partition(LEAVE)[2]
