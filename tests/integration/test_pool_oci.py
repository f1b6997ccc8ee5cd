"""The pool on real sandboxes: a Python function from cold start to report, misbehaving ones, an http one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import secrets
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from faas.build.recipe import recipe
from faas.errors import FunctionError, InitFailed, InstanceExited, OutOfMemory, TimedOut
from faas.leases import HttpRequest, Invocation, InvocationResult, KnownHead, StreamedResult, Trigger
from faas.metrics import Metrics
from faas.protocol import (
    Kind,
    LogQuery,
    LogRecord,
    Outcome,
    Revision,
    RevisionKey,
)
from faas.spec import Interface, parse
from tests.conftest import SOAK
from tests.support.fake_driver import eventually
from tests.support.images import MemoryImages, tar_of
from tests.support.leftovers import on_this_machine
from tests.support.stem_functions import base_layers
from worker.drivers.base import DriverPaths
from worker.drivers.oci.driver import OciDriver
from worker.pool import Pool

pytestmark = [pytest.mark.root, pytest.mark.oci]

EVENTS = 1000 if SOAK else 12
KILLS = 500 if SOAK else 4
HANDLER = b"""
import os, sys, subprocess, time

def handler(event, context):
    mode = event.get("mode")
    print("mode", mode)
    if mode == "loop":
        while True:
            pass
    if mode == "memory":
        hog = []
        while True:
            hog.append(bytearray(8 << 20))
    if mode == "use":
        keep = bytearray(event["mb"] << 20)
        for i in range(0, len(keep), 4096):
            keep[i] = 1
        time.sleep(event.get("seconds", 0.2))
    if mode == "fork":
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(600)
                    os._exit(0)
            except OSError:
                time.sleep(600)
    if mode == "exit":
        os._exit(3)
    if mode == "crash":
        import ctypes
        ctypes.string_at(0)
    if mode == "disk":
        try:
            with open("/tmp/full", "wb") as file:
                while True:
                    file.write(b"x" * (1 << 20))
        except OSError as error:
            return error.strerror
    if mode == "flood":
        for n in range(event["lines"]):
            print("y" * 999)
    if mode == "env":
        return dict(os.environ)
    if mode == "id":
        return [os.getuid(), os.getgid(), os.getcwd()]
    if mode == "stream":
        return pieces(event)
    return event

def pieces(event):
    yield {"statusCode": 201}
    for number in range(event["pieces"]):
        yield b"x" * 65536
    if event.get("then") == "exit":
        os._exit(3)
    if event.get("then") == "sleep":
        time.sleep(60)
"""
SERVER = b"""
import os, socket
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    connection, _ = listener.accept()
    while True:
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            data = connection.recv(65536)
            if not data:
                break
            head += data
        if not head:
            break
        target = head.split(b" ", 2)[1]
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(target), target))
"""
FILES = {
    "var/task/app.py": HANDLER,
    "var/task/broken.py": b"import nowhere_to_be_found\n",
    "var/task/stuck.py": b"import sys, time\nprint('still waiting', file=sys.stderr)\ntime.sleep(600)\n",
    "var/task/server.py": SERVER,
}


@dataclass
class Bench:
    images: MemoryImages
    reference: str
    data: Path
    server_id: str
    python: str


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The Python base and one layer of code; unpacked once for all tests here."""
    images, made = MemoryImages(), recipe("python")
    tars = [*base_layers("python"), tar_of({"var": None, "var/task": None, **FILES})]
    reference = images.add(
        "hello",
        tars,
        entrypoint=made.entrypoint,
        workdir="/var/task",
        env=("PATH=/usr/bin:/bin", "_HANDLER=app.handler"),
    )
    return Bench(images, reference, tmp_path_factory.mktemp("data"), secrets.token_hex(4), made.entrypoint[0])


class World:
    def __init__(self, bench: Bench, logs: Path) -> None:
        self.bench = bench
        self.driver = OciDriver(DriverPaths(bench.data, bench.server_id), bench.images)
        self.pool = Pool(self.driver, logs, Metrics("test"))
        self.numbers = iter(range(1, 1_000_000))

    def revision(self, **keys: Any) -> Revision:
        interface = keys.pop("contract", Interface.LAMBDA)
        spec = parse({"name": "hello", "timeout": 3, "network": "none", "ephemeral_storage": 16, **keys})
        return Revision(RevisionKey("default", "hello", 7), spec, self.bench.reference, interface)

    async def invoke(self, of: Revision, **event: Any) -> Any:
        request_id = f"r{next(self.numbers)}"
        async with self.pool.acquire(of, Invocation(request_id, Trigger.HTTP, 20)) as lease:
            self.last: InvocationResult = await lease.invoke(json.dumps(event).encode())
        self.report = lease.report
        return json.loads(self.last.payload)

    async def lines(self, **query: Any) -> list[LogRecord]:
        return [record async for record in self.pool.logs(LogQuery("default", "hello", **query))]


@pytest.fixture
async def world(bench: Bench, tmp_path: Path) -> AsyncIterator[World]:
    world = World(bench, tmp_path / "logs")
    await world.pool.open()
    try:
        yield world
    finally:
        await world.pool.close(1)
    # By the server's own id: other servers of this machine may come and go meanwhile.
    left = [name for names in on_this_machine().values() for name in names if bench.server_id in name]
    assert left == []


async def test_a_python_function_from_cold_start_to_report(world: World) -> None:
    hello = world.revision()
    report = await world.pool.check(hello)
    assert report.interface is Interface.LAMBDA
    assert 0 < report.init_seconds < 5
    assert await world.invoke(hello, mode="x", n=1) == {"mode": "x", "n": 1}
    first = world.report
    assert first is not None
    assert first.init_seconds is not None
    assert first.init_seconds == pytest.approx(report.init_seconds)
    assert first.billed_seconds >= first.init_seconds + first.duration_seconds
    assert 1_000_000 < first.max_memory_bytes < 100_000_000
    messages = [record.message for record in await world.lines(request_id="r1")]
    assert messages[0] == "START RequestId: r1 Version: 7"
    assert messages[1] == "mode x"
    assert messages[2] == "END RequestId: r1"
    assert "\tInit Duration: " in messages[3]
    assert await world.invoke(hello, mode="id") == [65534, 65534, "/var/task"]
    env = await world.invoke(hello, mode="env")
    assert env["AWS_LAMBDA_RUNTIME_API"] == "127.0.0.1:9001"
    assert env["AWS_LAMBDA_FUNCTION_NAME"] == "hello"
    assert not {"FAAS_TOKEN", "SSH_AUTH_SOCK", "VIRTUAL_ENV", "PWD"} & env.keys()
    [status] = world.pool.instances(hello.key)
    assert (status.state, status.invocations) == ("idle", 3)
    assert status.memory_bytes > 0


@pytest.mark.parametrize(
    ("event", "error", "words"),
    [
        ({"mode": "loop"}, TimedOut, r"Task timed out after 3\.00 seconds"),
        ({"mode": "fork"}, TimedOut, r"Task timed out after 3\.00 seconds"),
        ({"mode": "memory"}, OutOfMemory, "limit of 128 MB.*: set memory = 256"),
        ({"mode": "exit"}, InstanceExited, "exit status 3"),
        ({"mode": "crash"}, InstanceExited, "signal: segmentation fault"),
    ],
    ids=["loop", "fork", "memory", "exit", "crash"],
)
async def test_a_violated_limit_is_a_clear_error_and_the_next_invocation_works(
    world: World, event: dict[str, Any], error: type[Exception], words: str
) -> None:
    # 256 processes need some 300 MB: with less the kernel may kill the first one before the time limit does.
    bad = world.revision(memory=512 if event["mode"] == "fork" else 128)
    await world.pool.scale(bad, 1)
    loop = asyncio.get_running_loop()
    await world.invoke(bad, mode="fine")
    began = loop.time()
    with pytest.raises(error, match=words):
        await world.invoke(bad, **event)
    assert loop.time() - began < 10  # itself it would go on for ten minutes
    assert await world.invoke(bad, mode="fine") == {"mode": "fine"}
    await eventually(lambda: len(world.pool.instances(bad.key)) == 1, 20)
    report = (await world.lines(request_id="r2"))[-1].message
    assert "Status: timeout" in report or "Status: error" in report
    assert "Max Memory Used: 128 MB" in report or event["mode"] != "memory"


async def test_a_full_tmp_says_so_and_costs_no_memory(world: World) -> None:
    full = world.revision()
    await world.pool.scale(full, 1)
    assert await world.invoke(full, mode="disk") == "No space left on device"
    assert world.report is not None
    assert world.report.max_memory_bytes < 64 << 20
    assert await world.invoke(full, mode="fine") == {"mode": "fine"}


async def test_memory_is_measured_while_it_is_used(world: World) -> None:
    hello = world.revision()
    await world.pool.scale(hello, 1)
    await world.invoke(hello, mode="use", mb=60, seconds=1)
    assert world.report is not None
    assert 60 << 20 <= world.report.max_memory_bytes <= 90 << 20
    await world.invoke(hello, mode="fine")
    await asyncio.sleep(0.06)
    await world.invoke(hello, mode="fine")
    assert world.report.max_memory_bytes < 60 << 20


@pytest.mark.parametrize(
    ("handler", "seconds", "message", "hint", "tail"),
    [
        ("broken.handler", 10, "nowhere_to_be_found", "requirements.txt", ""),
        ("stuck.handler", 4, "init did not finish within 4 s", "init_timeout", "still waiting"),
        ("app.missing", 10, "missing", "handler", ""),
    ],
)
async def test_an_init_that_fails_is_diagnosed(
    world: World, handler: str, seconds: int, message: str, hint: str, tail: str
) -> None:
    with pytest.raises(InitFailed) as failed:
        await world.pool.check(world.revision(runtime="python", handler=handler, init_timeout=seconds))
    assert message in failed.value.message
    assert hint in failed.value.hint
    assert tail in failed.value.log_tail


async def test_a_flood_of_output_is_cut_and_the_function_goes_on(world: World) -> None:
    hello = world.revision(timeout=30)
    await world.pool.scale(hello, 1)
    await world.invoke(hello, mode="flood", lines=15_000)
    records = await world.lines(request_id="r1", limit=20_000)
    assert sum(len(r.message) + 1 for r in records if r.stream == "stdout") <= 10 << 20
    assert "bytes of output were cut" in records[-3].message
    assert records[-1].message.startswith("REPORT")


async def test_an_http_function_is_found_out_and_answers(world: World) -> None:
    keys = {"entrypoint": [world.bench.python, "-I", "-S"], "command": ["/var/task/server.py"]}
    unknown = world.revision(contract=Interface.AUTO, port=3456, **keys)
    assert (await world.pool.check(unknown)).interface is Interface.HTTP
    async with world.pool.acquire(unknown, Invocation("r1", Trigger.HTTP, 5)) as lease:
        response = await lease.request(HttpRequest("GET", "/a/b?c=d", (("Host", "x"),)))
        assert b"".join([chunk async for chunk in response.body]) == b"/a/b?c=d"
    assert (await world.lines(request_id="r1"))[-1].message.startswith("REPORT RequestId: r1")


async def test_a_wrong_port_is_named(world: World) -> None:
    keys = {"entrypoint": [world.bench.python, "-I", "-S", "-c", f"import os;os.environ['PORT']='5000';{_RUN}"]}
    with pytest.raises(InitFailed) as failed:
        await world.pool.check(world.revision(contract=Interface.AUTO, init_timeout=4, **keys))
    assert "something does on 5000" in failed.value.message


_RUN = "exec(open('/var/task/server.py').read())"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.timeout(3600 if SOAK else 180)
async def test_a_killed_or_stopped_runtime_loses_no_event(world: World) -> None:
    """Every event gets an answer or one clear error, and what was never taken is retried."""
    hello = world.revision(timeout=3)
    await world.pool.scale(hello, 1)
    answered = errors = 0
    for number in range(EVENTS):
        assert await world.invoke(hello, n=number) == {"n": number}
        [idle] = [status for status in world.pool.instances(hello.key) if status.state == "idle"]
        process = world.driver._sandboxes[idle.id].process
        assert process is not None
        how = signal.SIGSTOP if number % 4 == 3 else signal.SIGKILL
        os.kill(process.pid, how)
        while how is signal.SIGKILL and _runs(process.pid):
            time.sleep(0.001)  # noqa: ASYNC251 - on purpose: the loop must not see its end before the event is there
        try:
            assert await world.invoke(hello, after=number) == {"after": number}
            answered += 1
        except (InstanceExited, TimedOut):
            errors += 1
    assert answered + errors == EVENTS
    assert errors == EVENTS // 4  # the stopped ones, at their deadline; a dead poll is never given an event


@pytest.mark.timeout(3600 if SOAK else 180)
async def test_who_calls_an_instance_that_is_killed_at_work_is_told_once_and_the_next_call_has_another(
    world: World,
) -> None:
    dice = random.Random(secrets.randbits(32))
    hello = world.revision(timeout=3)
    await world.pool.check(hello)
    await world.pool.scale(hello, 1)
    killed = tries = 0
    while killed < KILLS and tries < 4 * KILLS:
        tries += 1
        call = asyncio.create_task(world.invoke(hello, mode="use", mb=1))
        await eventually(lambda: world.pool.stats(hello.key).executing == 1, 20)
        await asyncio.sleep(dice.uniform(0, 0.15))
        busy = [status.id for status in world.pool.instances(hello.key) if status.state == "busy"]
        processes = [world.driver._sandboxes[instance].process for instance in busy]
        for process in processes:
            assert process is not None
            os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(4):  # the function's time limit, and a second
            try:
                await call  # it was quicker
            except InstanceExited:
                killed += 1
        await eventually(lambda: not any(process and _runs(process.pid) for process in processes), 20)  # noqa: B023
        assert await world.invoke(hello, after=tries) == {"after": tries}
    assert killed == KILLS


async def test_a_burst_starts_many_and_scale_to_zero_leaves_none(world: World) -> None:
    hello = world.revision()
    await world.pool.scale(hello, 8)
    answers = await asyncio.gather(*(world.invoke(hello, n=n) for n in range(60)))
    assert sorted(answer["n"] for answer in answers) == list(range(60))
    await eventually(lambda: world.pool.stats(hello.key).idle == 8, 20)
    await world.pool.scale(hello, 0)
    await eventually(lambda: not world.driver._sandboxes, 20)


async def test_a_job_runs_to_its_exit_and_a_service_is_kept_beside_a_function(world: World) -> None:
    python = world.bench.python
    hello = world.revision()
    await world.pool.check(hello)
    service = world.revision(entrypoint=[python, "-I", "-c", "import time; print('up', flush=True); time.sleep(600)"])
    job = world.revision(entrypoint=[python, "-I", "-c", "print('at work'); raise SystemExit(3)"])
    hog = world.revision(entrypoint=[python, "-I", "-c", "hog = bytearray(200 << 20)"])
    async with world.pool.run(service, Kind.SERVICE, wait_seconds=5) as kept:
        for ends, outcome in ((job, Outcome(3)), (hog, Outcome(137, 9, out_of_memory=True))):
            async with world.pool.run(ends, Kind.JOB, wait_seconds=5) as running, asyncio.timeout(20):
                usage = await world.pool.usage()
                assert usage.charged_bytes[Kind.SERVICE] == 128 << 20
                assert 0 < usage.charged_bytes[Kind.INVOKED] <= 128 << 20  # less, once it stands still
                assert await running.outcome() == outcome
        assert await world.invoke(hello, mode="fine") == {"mode": "fine"}
        assert kept.instance_id in await world.driver.ids()
    assert (await kept.outcome()).signal == 9
    assert kept.instance_id not in await world.driver.ids()
    assert {"at work", "up"} <= {record.message for record in await world.lines()}


class Ended:
    """The end of a claim's invocation."""

    def __init__(self) -> None:
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.body = b""

    def __call__(self, result: InvocationResult | None, error: BaseException | None) -> None:
        self.body = result.payload if result is not None else b""
        self.end(error)

    def whole(self, head: KnownHead, body: bytes, seconds: float) -> None:
        self.head(head.status, head.fields)
        self.data(body)
        self.end(None)

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        assert status == 200

    def data(self, piece: bytes) -> None:
        self.body += piece

    def end(self, error: BaseException | None) -> None:
        if error is None:
            self.future.set_result(self.body)
        else:
            self.future.set_exception(error)


async def test_claims_of_a_warm_instance_are_answered_by_either_contract(world: World) -> None:
    hello = world.revision()
    await world.pool.scale(hello, 1)
    await world.invoke(hello, n=0)
    for number in range(50):
        claim, ended = world.pool.door(hello)(f"c{number}"), Ended()
        assert claim is not None
        claim.invoke(b'{"mode": "x", "n": %d}' % number, ended)
        assert json.loads(await ended.future) == {"mode": "x", "n": number}
        assert claim.report is not None
        assert claim.report.max_memory_bytes > 1_000_000
    for number in range(50):
        messages = [record.message for record in await world.lines(request_id=f"c{number}")]
        assert [message.split()[0] for message in messages] == ["START", "mode", "END", "REPORT"]
    claim, ended = world.pool.door(hello)("last"), Ended()
    while claim is None:  # it has been frozen meanwhile
        await world.invoke(hello, n=0)
        claim = world.pool.door(hello)("last")
    claim.invoke(b'{"mode": "exit"}', ended)
    with pytest.raises(InstanceExited):
        await ended.future
    keys = {"entrypoint": [world.bench.python, "-I", "-S"], "command": ["/var/task/server.py"]}
    web = world.revision(contract=Interface.HTTP, port=3456, name="web", **keys)
    web = dataclasses.replace(web, key=RevisionKey("default", "web", 1))
    await world.pool.check(web)
    for number in range(50):
        claim, ended = world.pool.door(web)(f"w{number}"), Ended()
        assert claim is not None
        claim.send("GET", b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number, ended)
        assert await ended.future == b"/%d" % number


@pytest.mark.parametrize(
    ("then", "error"), [("", None), ("exit", InstanceExited), ("sleep", TimedOut)], ids=["whole", "exit", "late"]
)
async def test_a_generators_answer_streams_with_back_pressure(
    world: World, then: str, error: type[Exception] | None
) -> None:
    hello = world.revision(timeout=3, memory=1769)
    await world.pool.scale(hello, 1)
    event = {"mode": "stream", "pieces": 400, "then": then}
    received = 0
    async with world.pool.acquire(hello, Invocation("s1", Trigger.HTTP, 20)) as lease:
        result = await lease.invoke_streaming(json.dumps(event).encode())
        assert isinstance(result, StreamedResult)
        assert json.loads(result.prelude or b"") == {"statusCode": 201}
        await asyncio.sleep(0.2)  # nobody takes: the function waits
        assert lease.report is None
        try:
            async for piece in result.body:
                received += len(piece)
            failure = None
        except FunctionError as failed:
            failure = type(failed)
    assert failure is error
    # Of one that ended, what the kernel still held is lost with it.
    assert received > 0 if error is InstanceExited else received == 400 * 65_536
    assert lease.report is not None
    assert lease.report.failed == bool(error)
    assert lease.report.duration_seconds > 0.2


async def test_who_leaves_a_stream_leaves_the_function_at_work(world: World) -> None:
    hello = world.revision(memory=1769)
    await world.pool.scale(hello, 1)
    async with world.pool.acquire(hello, Invocation("s1", Trigger.HTTP, 20)) as lease:
        result = await lease.invoke_streaming(b'{"mode": "stream", "pieces": 400}')
        assert isinstance(result, StreamedResult)
    assert world.pool.stats(hello.key).executing == 1
    await eventually(lambda: world.pool.stats(hello.key).executing == 0, 20)
    assert lease.report is not None
    assert not lease.report.failed
    assert await world.invoke(hello, mode="x") == {"mode": "x"}
