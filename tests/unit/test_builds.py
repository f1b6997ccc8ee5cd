"""Builds on the server: the conversation of client, gateway and builder, with the builder as a process beside it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from faas.build import messages, pip_settings, remote
from faas.build.dependencies import NeedsBuild, listed, python_layer
from faas.build.messages import Channel
from faas.build.progress import Quiet
from faas.client import Client
from faas.errors import FaasError, Forbidden, InvalidInput, OutOfMemory, PayloadTooLarge, Throttled, Unavailable
from gateway.control import builds
from tests.support.control import Control, control, until
from tests.support.local_builder import BuildingWorker
from tests.support.package_index import PackageIndex, source_archive, source_files
from tests.unit.test_build_dependencies import BASE, contents, wheel

RUNTIME = f"python{BASE.version}"


class Told(Quiet):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@asynccontextmanager
async def building(tmp_path: Path, worker: BuildingWorker) -> AsyncIterator[tuple[Control, Client]]:
    async with control(tmp_path, worker) as server, Client(server.api, server.token) as client:
        yield server, client


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {"PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "",
                        "PIP_CONSTRAINT": "", "PIP_CERT": ""}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    made = tmp_path / "code"
    made.mkdir()
    return made


async def layer_files(folder: Path, client: Client, told: Told | None = None) -> dict[str, bytes]:
    """What a push makes of the folder's dependencies."""
    work, cache = folder.parent / "push", folder.parent / "cache"
    work.mkdir(exist_ok=True)
    with pytest.raises(NeedsBuild):
        await asyncio.to_thread(python_layer, folder, BASE, cache, work)
    found = await asyncio.to_thread(listed, folder, work)
    assert found is not None
    made = await remote.wheels(found, RUNTIME, work, client.build, told or Quiet())
    layer = await asyncio.to_thread(python_layer, folder, BASE, cache, work, made)
    assert layer is not None
    return contents(layer)


def with_text(folder: Path, text: bytes) -> list[Path]:
    """Files below it, whatever server, sandbox, cache and push left there, that hold this."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    return [path for path in files if text in path.read_bytes()]


# What comes of it


async def test_sources_of_an_index_with_a_login_are_built_beside_wheels_by_their_hashes_and_nobody_learns_the_login(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    source = source_archive(index / "ours", "ours", "1.0", {"ours.py": "SAID = 'built'\n"}, needs="plain")
    plain = wheel(index / "plain", "plain", "3.0", {"plain.py": "as it was"})
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (source, plain))
    lines = ("--index-url ${OUR_INDEX}", f"ours==1.0 --hash=sha256:{first}", f"plain==3.0 \\\n --hash=sha256:{second}")
    (folder / "requirements.txt").write_text("\n".join(lines))
    worker, told = BuildingWorker(tmp_path / "sandbox"), Told()
    worker.meet(monkeypatch.setattr)
    with PackageIndex(index, login=("me", "CANARY-7f3")) as running:
        monkeypatch.setenv("OUR_INDEX", running.url_with_login)
        async with building(tmp_path, worker) as (_, client):
            files = await layer_files(folder, client, told)
    assert files["opt/python/ours.py"] == b"SAID = 'built'\n"
    assert files["opt/python/plain.py"] == b"as it was"
    assert any("Successfully built ours" in line for line in told.lines)
    assert running.asked.count("/files/plain/plain-3.0-py3-none-any.whl") == 1  # and did not come back either
    assert with_text(tmp_path, b"CANARY-7f3") == []
    assert not any("CANARY-7f3" in line or running.host in line for line in told.lines)


async def test_archives_in_wheels_and_folders_that_are_required_are_sent_and_built(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source_archive(folder / "wheels", "ours", "1.0", {"ours.py": "from wheels/"})
    wheel(tmp_path / "index" / "ours", "ours", "1.0", {"ours.py": "from the index"})
    package = folder / "my lib é"
    package.mkdir()
    for name, text in source_files("mine", "0.1", {"mine.py": "from the folder"}).items():
        (package / name).write_text(text)
    (folder / "requirements.txt").write_text("ours\nmine @ file://" + str(package).replace(" ", "%20") + "\n")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index").as_uri())
    worker = BuildingWorker(tmp_path / "sandbox")
    worker.meet(monkeypatch.setattr)
    async with building(tmp_path, worker) as (_, client):
        files = await layer_files(folder, client)
    assert files["opt/python/ours.py"] == b"from wheels/"
    assert files["opt/python/mine.py"] == b"from the folder"


async def test_a_package_whose_build_fails_says_its_own_words_and_what_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "sys.exit('gcc: command not found')"
    source_archive(folder / "wheels", "ours", "1.0", {"ours.py": ""}, before=words)
    (folder / "requirements.txt").write_text("ours\n")
    worker = BuildingWorker(tmp_path / "sandbox")
    worker.meet(monkeypatch.setattr)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    async with building(tmp_path, worker) as (_, client):
        with pytest.raises(InvalidInput, match="gcc: command not found"):
            await layer_files(folder, client)


@pytest.mark.parametrize(
    ("said", "has_compiler", "hint"),
    [
        ("error: command 'gcc' failed: No such file or directory", False, "apt-get install gcc g++ make python3-dev"),
        ("x.c:1:10: fatal error: Python.h: No such file or directory", True, "python3-dev is not on the server"),
        ("x.c:1:10: fatal error: libpq-fe.h: No such file or directory", True, "what has libpq-fe.h"),
        ("× Building wheel for x did not run successfully.\n│ exit code: -9", True, "1 GB of memory"),
        ("x.c:3: error: expected ';'", True, ""),
    ],
)
def test_a_failed_build_says_what_the_server_wants(said: str, has_compiler: bool, hint: str) -> None:
    found = remote.hint(said, has_compiler=has_compiler)
    assert hint in found
    assert bool(hint) == bool(found)


def test_a_failed_build_names_its_error_and_not_pips_words_around_it() -> None:
    tail = """  × Building wheel for x (pyproject.toml) did not run successfully.
      x.c:1:10: fatal error: Python.h: No such file or directory
      compilation terminated.
      error: command '/usr/bin/gcc' failed with exit code 1
      [end of output]
  note: This error originates from a subprocess, and is likely not a problem with pip.
  ERROR: Failed building wheel for x
ERROR: Failed to build one or more wheels"""
    assert remote.reason(tail) == (
        "x.c:1:10: fatal error: Python.h: No such file or directory; "
        "error: command '/usr/bin/gcc' failed with exit code 1"
    )
    assert remote.reason("one\n\ntwo") == "one; two"


# Bounds


LISTEN = "import socket, sys, time; line = socket.create_server(('127.0.0.1', int(sys.argv[1]))).accept()[0]; "
SILENT = LISTEN + "time.sleep(99)"
ENDS = LISTEN + "line.recv(1)"
LIES = LISTEN + "line.sendall((1 << 30).to_bytes(4, 'big')); line.recv(1); line.recv(1 << 20)"


async def test_a_builder_that_breaks_off_is_said_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "LAST_SECONDS", 20.0)
    for memory, kind in ((True, OutOfMemory), (False, Unavailable)):
        async with building(tmp_path, BuildingWorker(tmp_path, ENDS, out_of_memory=memory)) as (_, client):
            with pytest.raises(kind):
                await one_word(client)


async def one_word(client: Client, content: bytes = b"{}") -> Any:
    async with client.build(RUNTIME) as channel:
        await channel.send(messages.GO, content)
        return await channel.receive(20)


async def test_what_is_no_message_ends_the_build(tmp_path: Path) -> None:
    async with building(tmp_path, BuildingWorker(tmp_path, LIES)) as (_, client):
        with pytest.raises(Unavailable, match="no message"):
            await one_word(client)


async def test_a_build_takes_so_much_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "THROUGH_BYTES", 1000)
    async with building(tmp_path, BuildingWorker(tmp_path, SILENT)) as (_, client):
        with pytest.raises(PayloadTooLarge):
            await one_word(client, bytes(1001))


async def test_a_build_is_ended_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "BUILD_SECONDS", 3.0)  # its process is there long before
    worker = BuildingWorker(tmp_path, SILENT)
    async with building(tmp_path, worker) as (_, client):
        with pytest.raises(Unavailable, match="ended after"):
            await one_word(client)
        assert worker.jobs[0].process.returncode is not None


async def test_a_build_ends_with_its_client_and_its_log_is_forgotten(tmp_path: Path) -> None:
    worker = BuildingWorker(tmp_path, SILENT)
    async with building(tmp_path, worker) as (_, client):
        with contextlib.suppress(FaasError):
            async with client.build(RUNTIME):
                pass
        await until(lambda: worker.jobs[0].process.returncode is not None)
        await until(lambda: worker.forgotten)
    key = worker.revisions[0].key
    assert worker.forgotten == [(key.namespace, key.function)]


async def test_builds_wait_for_their_turn_and_beyond_those_that_wait_they_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "AT_ONCE", 1)
    monkeypatch.setattr(builds, "WAITING", 1)
    worker = BuildingWorker(tmp_path, SILENT)
    async with building(tmp_path, worker) as (_, client), contextlib.AsyncExitStack() as first:
        await first.enter_async_context(client.build(RUNTIME))
        second = asyncio.create_task(client.build(RUNTIME).__aenter__())
        await asyncio.sleep(0.2)
        with pytest.raises(Throttled):
            async with client.build(RUNTIME):
                pass
        assert len(worker.jobs) == 1
        await first.aclose()
        await second
        assert len(worker.jobs) == 2


async def test_one_caller_takes_not_all_places_and_a_build_ends_with_its_callers_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds, "OF_ONE", 1)
    worker = BuildingWorker(tmp_path, SILENT)
    async with building(tmp_path, worker) as (server, client):
        made = await server.call("POST", "/v1/tokens", {"name": "ci", "role": "deployer"})
        async with Client(server.api, made.json()["token"]) as other, other.build(RUNTIME) as channel:
            with pytest.raises(Throttled):
                async with other.build(RUNTIME):
                    pass
            async with client.build(RUNTIME):
                pass
            assert (await server.call("DELETE", "/v1/tokens/ci")).status == 204
            with pytest.raises(Forbidden):
                await channel.receive()
        await until(lambda: all(job.process.returncode is not None for job in worker.jobs))


async def test_who_asks_for_no_websocket_or_another_language_is_told(tmp_path: Path) -> None:
    async with building(tmp_path, BuildingWorker(tmp_path, SILENT)) as (server, client):
        plain = await server.call("GET", "/v1/builds")
        assert (plain.status, plain.json()["error"]["hint"]) == (400, "faas push opens it")
        with pytest.raises(InvalidInput):
            async with client.build("node20"):
                pass
        headers = {"Authorization": f"Bearer {server.token}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(f"{server.api}/v1/builds") as socket,
        ):
            await socket.receive()
            await socket.send_str("text")
            assert "binary" in (await socket.receive()).data


# What a builder may say of itself is not believed


class Scripted:
    """A `Channel` whose builder says these messages."""

    def __init__(self, *said: tuple[bytes, bytes]) -> None:
        self._said = list(said)

    async def send(self, kind: bytes, content: bytes) -> None: ...

    async def receive(self) -> tuple[bytes, bytes]:
        return self._said.pop(0)


GOOD = hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    ("head", "data", "words"),
    [
        ('{"name": "../../evil-1.0-py3-none-any.whl", "size": 3}', b"abc", "no wheel"),
        ('{"name": "evil.sh", "size": 3}', b"abc", "no wheel"),
        ('{"name": "a-1.0-py3-none-any.whl", "size": 2000000000}', b"abc", "more than"),
        ('{"name": "a-1.0-py3-none-any.whl", "size": 2}', b"abc", "not as long"),
        ('{"name": "a-1.0-py3-none-any.whl", "size": 3, "sha256": "00"}', b"abc", "not what the build said"),
        ('{"name": "a-1.0-py3-none-any.whl", "size": 3, "known": true, "sha256": "' + GOOD + '"}', b"abd", "not what"),
        ("[]", b"", "unknown"),
    ],
)
async def test_a_wheel_is_refused_whose_name_size_or_content_is_not_what_it_should_be(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, data: bytes, words: str
) -> None:
    monkeypatch.setattr(pip_settings, "ask", lambda *_: pip_settings.PipSettings())
    (folder / "requirements.txt").write_text("./x.tar.gz\n")
    (folder / "x.tar.gz").write_bytes(b"")

    @asynccontextmanager
    async def opened(runtime: str) -> AsyncIterator[Channel]:
        yield Scripted((messages.WHEEL, head.encode()), (messages.DATA, data))

    found = await asyncio.to_thread(listed, folder, tmp_path)
    assert found is not None
    with pytest.raises((InvalidInput, Unavailable), match=words):
        await remote.wheels(found, RUNTIME, tmp_path / "push", opened, Quiet())
    assert not (tmp_path / "evil-1.0-py3-none-any.whl").exists()
