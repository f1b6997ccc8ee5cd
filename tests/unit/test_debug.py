"""A terminal over a WebSocket: its rules, against a gateway whose worker runs the program on a real terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse, WSMsgType, WSServerHandshakeError

from faas.errors import ImageUnusable, InvalidInput, NotOffered
from faas.protocol import Outcome, Revision, Terminal
from gateway.control.debug import MOST, OF_ONE, SHELL, Idle, Wish
from tests.support.control import Control, control, until
from worker.terminal import PtyTerminal


class Program:
    """A process on a terminal of its own, as `Running` shows one."""

    def __init__(self, process: asyncio.subprocess.Process, terminal: PtyTerminal) -> None:
        self.instance_id = "i1"
        self.terminal: Terminal | None = terminal
        self.process = process

    async def outcome(self) -> Outcome:
        code = await self.process.wait()
        return Outcome(code) if code >= 0 else Outcome(128 - code, -code)

    async def connect(self, port: int, seconds: float) -> Any:
        raise NotOffered


@dataclass
class Programs:
    """`FakeWorker.on_run`: what a revision's command line says, on this machine."""

    revisions: list[Revision] = field(default_factory=list)
    open: list[Program] = field(default_factory=list)
    without: tuple[str, ...] = ()  # programs that the image lacks

    @contextlib.asynccontextmanager
    async def __call__(self, revision: Revision, terminal: bool) -> AsyncIterator[Program]:
        assert terminal
        self.revisions.append(revision)
        args, spec = revision.spec.entrypoint, revision.spec
        if args[0] in self.without:
            raise ImageUnusable(f"the command is not in the image: {args[0]}", hint="check command and entrypoint")
        master, slave = pty.openpty()
        os.set_blocking(master, False)
        env = {"PATH": "/usr/bin:/bin", **spec.env}

        def in_front() -> None:
            os.setsid()
            os.close(os.open(os.ttyname(0), os.O_RDWR))  # the terminal of this session from here on

        process = await asyncio.create_subprocess_exec(
            *args, stdin=slave, stdout=slave, stderr=slave, env=env, preexec_fn=in_front
        )
        os.close(slave)
        seat = PtyTerminal(master)
        program = Program(process, seat)
        self.open.append(program)
        try:
            yield program
        finally:
            seat.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            self.open.remove(program)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        running.worker.on_run = Programs()
        await running.deploy(env={"LEVEL": "info"})
        yield running


@contextlib.asynccontextmanager
async def session(server: Control, token: str = "", **wish: Any) -> AsyncIterator[ClientWebSocketResponse]:
    headers = {"Authorization": f"Bearer {token or server.token}"}
    url = f"{server.api}/v1/functions/hello/debug"
    async with server.session.ws_connect(url, headers=headers) as socket:
        assert socket._response.headers["X-Request-Id"]
        await socket.send_str(json.dumps(wish))
        yield socket


async def whole(socket: ClientWebSocketResponse, until_text: str = "") -> tuple[str, Any]:
    """What was written, until it holds `until_text` or the session ended; and its last message."""
    text = ""
    async with asyncio.timeout(10):
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                text += message.data.decode()
            elif not {"exit", "error"}.isdisjoint(told := json.loads(message.data)):
                return text, told
            if until_text and until_text in text:
                break
    return text, None


async def test_a_command_has_the_functions_environment_and_its_exit_status_is_told(server: Control) -> None:
    async with session(server, command=["sh", "-c", "echo $LEVEL $TERM; exit 7"], term="vt100", plain=True) as socket:
        text, told = await whole(socket)
    assert (text, told) == ("info vt100\n", {"exit": 7, "signal": 0, "out_of_memory": False})
    runs = server.worker.on_run
    assert isinstance(runs, Programs)
    assert runs.revisions[0].key.number == 1
    assert runs.revisions[0].spec.memory_bytes == 128 << 20


async def test_a_shell_takes_what_is_typed_a_new_size_and_ctrl_c(server: Control) -> None:
    async with session(server, columns=90, rows=30) as socket:
        await socket.send_bytes(b"stty size\n")
        await whole(socket, "30 90")
        await socket.send_str('{"resize": [100, 40]}')
        await socket.send_bytes(b"stty size\n")
        await whole(socket, "40 100")
        await socket.send_bytes(b"sleep 60; echo went-on-$?\n")
        await asyncio.sleep(0.2)
        await socket.send_bytes(b"\x03")
        await socket.send_bytes(b"exit 3\n")
        text, told = await whole(socket)
    assert told["exit"] == 3
    assert "went-on-0" not in text


async def test_ctrl_c_reaches_a_command_that_is_not_asking_for_it(server: Control) -> None:
    async with session(server, command=["sleep", "60"]) as socket:
        assert json.loads((await socket.receive()).data) == {"instance": "i1"}
        await asyncio.sleep(0.2)
        await socket.send_bytes(b"\x03")
        _, told = await whole(socket)
    assert told["exit"] in (130, 128 + 2)


async def test_a_client_that_goes_takes_its_instance_with_it(server: Control) -> None:
    runs = server.worker.on_run
    assert isinstance(runs, Programs)
    async with session(server, command=["sleep", "60"]) as socket:
        await socket.receive()
        assert len(runs.open) == 1
    await until(lambda: not runs.open)


async def test_there_are_so_many_sessions_at_once_and_no_more_and_no_caller_has_them_all(server: Control) -> None:
    other = await server.a_token("deployer")
    async with contextlib.AsyncExitStack() as stack:
        for number in range(MOST):
            if number == OF_ONE:
                async with session(server) as socket:
                    _, told = await whole(socket)
                assert told["error"]["message"].endswith("for admin, who gets no more at once")
            by = other if number >= OF_ONE else ""
            socket = await stack.enter_async_context(session(server, by, command=["sleep", "60"]))
            await socket.receive()
        async with session(server, other) as socket:
            _, told = await whole(socket)
        assert told["error"]["code"] == "Throttled"
        assert told["error"]["message"].endswith("that is all at once")
        assert told["error"]["request_id"]
    async with session(server, command=["true"]) as socket:
        await until(lambda: not server.worker.on_run.open)  # type: ignore[union-attr]


async def test_a_session_ends_when_nothing_happens_and_when_its_time_is_over(server: Control) -> None:
    async def ended(**wish: Any) -> str:
        async with session(server, command=["sleep", "60"], **wish) as socket:
            _, told = await whole(socket)
        assert told["error"]["code"] == "RequestTimeout"
        return str(told["error"]["message"])

    idle, over = await asyncio.gather(ended(idle=1), ended(lifetime=1))
    assert "nothing happened" in idle
    assert "are over" in over


async def test_the_clock_of_a_session_counts_from_its_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] < 25:
            idle.seen()

    monkeypatch.setattr(asyncio, "sleep", sleep)
    idle = Idle(lambda: now[0])
    assert await idle.over(10, 100) == "nothing happened for 10 s"
    assert now[0] == 30
    assert await idle.over(1000, 60) == "the session's 60 s are over"


async def test_an_image_without_a_shell_says_so_and_still_runs_its_own_programs(server: Control) -> None:
    runs = server.worker.on_run
    assert isinstance(runs, Programs)
    runs.without = (SHELL,)
    async with session(server) as socket:
        _, told = await whole(socket)
    assert told["error"]["message"].startswith("the image has no shell: ")
    assert "faas debug NAME -- PROGRAM" in told["error"]["hint"]
    async with session(server, command=["/usr/bin/env", "true"], plain=True) as socket:
        _, told = await whole(socket)
    assert told["exit"] == 0
    runs.without = (SHELL, "nothing")
    async with session(server, command=["nothing"]) as socket:
        _, told = await whole(socket)
    assert told["error"]["message"] == "the command is not in the image: nothing"


async def test_viewers_and_other_namespaces_get_no_terminal(server: Control) -> None:
    for token in (await server.a_token("viewer"), await server.a_token("deployer", "team")):
        with pytest.raises(WSServerHandshakeError) as refused:
            async with session(server, token):
                pass
        assert refused.value.status == 403
    plain = await server.call("GET", "/v1/functions/hello/debug")
    assert (plain.status, plain.json()["error"]["code"]) == (426, "UpgradeRequired")


async def test_a_driver_without_terminals_is_named(server: Control) -> None:
    server.worker.on_run = None
    async with session(server) as socket:
        _, told = await whole(socket)
    assert told["error"]["code"] == "NotOffered"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"cmd": []}', "unknown key 'cmd'"),
        ('{"command": "ls"}', "command must be a list"),
        ('{"command": [""]}', "command must begin with a program"),
        ('{"command": ["a\\u0000"]}', "command must be a list"),
        (json.dumps({"command": ["a"] * 257}), "command must be a list"),
        ('{"columns": 0}', "columns must be"),
        ('{"rows": 5000}', "rows must be"),
        ('{"term": "a b"}', "term must be"),
        ('{"plain": 1}', "plain must be"),
        ('{"idle": 901}', "idle must be"),
        ('{"lifetime": 3601}', "lifetime must be"),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused_by_its_key(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Wish.parse(text)


async def test_a_session_ends_with_the_right_to_have_it(server: Control) -> None:
    made = await server.call("POST", "/v1/tokens", {"name": "dev", "role": "deployer"})
    async with session(server, made.json()["token"], command=["sleep", "60"]) as socket:
        await socket.receive(timeout=10)  # it runs
        assert (await server.call("DELETE", "/v1/tokens/dev")).status == 204
        _, told = await whole(socket)
    assert told["error"]["code"] == "Forbidden"
    await until(lambda: server.worker.on_run.open == [])  # type: ignore[union-attr]
