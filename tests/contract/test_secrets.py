"""How every driver gives a sandbox its secrets: read-only files in memory, and variables."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from faas.secret import FOLDERS, Given, Secret
from tests.contract.test_driver import KINDS
from tests.support.leftovers import none_left
from tests.support.podman import podman_service
from tests.support.sandboxes import Workbench, workbench

pytestmark = [pytest.mark.root]
CANARY = "canary-of-the-drivers-4711"
GIVEN = Given({"db-password": Secret(CANARY), "pem": Secret("line 1\r\nline 2\n")}, {"DB_PASSWORD": "db-password"})


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with podman_service(tmp_path_factory.mktemp("podman")) as host:
        yield host


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "podman":
        monkeypatch.setenv("DOCKER_HOST", request.getfixturevalue("podman"))
    return str(request.param)


@pytest.fixture
async def bench(kind: str, tmp_path: Path) -> AsyncIterator[Workbench]:
    server_id = secrets.token_hex(4)
    with none_left(server_id):
        async with workbench(tmp_path, server_id, kind) as made:
            yield made


async def test_each_secret_is_a_file_of_the_functions_user_and_a_variable_where_one_is_named(bench: Workbench) -> None:
    words = [word for folder in FOLDERS for word in ("cat", f"{folder}/db-password", "cat", f"{folder}/pem")]
    for user in ((65534, 65534), (1234, 4321)):
        _, text = await bench.run("env", "DB_PASSWORD", "env", "GREETING", *words, user=user, secrets=GIVEN)
        assert text == f"{CANARY}\nhello\n" + (CANARY + "line 1\r\nline 2\n") * 2


async def test_nobody_inside_changes_a_secret_and_without_one_nothing_is_there(bench: Workbench) -> None:
    places = [f"{folder}/{name}" for folder in FOLDERS for name in ("db-password", "new")]
    _, text = await bench.run(*(word for place in places for word in ("touch", place)), secrets=GIVEN)
    assert len(text.splitlines()) == len(places)
    assert "allowed" not in text
    _, text = await bench.run("cat", f"{FOLDERS[0]}/db-password", "env", "DB_PASSWORD")
    assert CANARY not in text


async def test_one_made_ahead_with_an_old_value_is_made_anew(bench: Workbench) -> None:
    old = Given({"db-password": Secret("old")}, {"DB_PASSWORD": "db-password"})
    words = ("env", "DB_PASSWORD", "cat", f"{FOLDERS[0]}/db-password", "exit", "0")
    for first, text in ((GIVEN, CANARY), (old, CANARY)):
        ahead = bench.spec(*words, secrets=first)
        await bench.driver.create(ahead, ahead=True)
        wanted = bench.spec(*words, id=ahead.id, secrets=GIVEN)
        sandbox = await bench.driver.create(wanted)
        assert (sandbox.path == "precreated") is (first is GIVEN)
        await bench.driver.start(sandbox)
        assert (await sandbox.stdout.read()).decode() == f"{text}\n{text}"
        await bench.driver.delete(sandbox.id)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.values[0] != "podman"], indirect=True)
async def test_no_file_on_disk_and_no_command_line_has_a_value(bench: Workbench, kind: str, tmp_path: Path) -> None:
    """With an engine a variable's value is in the engine's record of the container: files are the way around it."""
    by_files = Given(GIVEN.values, {})
    async with bench.running("wait", secrets=by_files if kind == "docker" else GIVEN):
        assert not any(CANARY.encode() in told for told in _command_lines())
        assert _holding(tmp_path) == []
        found = _holding(Path("/run/faas"))
        assert found, "the test looks for it where it has to be"
        assert {_file_system(path) for path in found} == {"tmpfs"}
        assert all(_closed_to_others(path) for path in found)
        if kind == "docker":
            assert CANARY not in _inspected(bench.server_id)
    assert _holding(Path("/run/faas")) == []


@pytest.mark.docker
@pytest.mark.parametrize("kind", ["docker"], indirect=True)
async def test_what_an_engine_tells_of_a_variable_is_said_in_the_docs(bench: Workbench, kind: str) -> None:
    """The one place where a value is seen: whoever may ask the engine is root anyway."""
    async with bench.running("wait", secrets=GIVEN):
        told = json.loads(_inspected(bench.server_id))
        shown = [one["Config"]["Env"] for one in told if any(CANARY in row for row in one["Config"]["Env"] or ())]
        assert len(shown) == 1
        for one in told:
            one["Config"]["Env"] = []
        assert CANARY not in json.dumps(told)


def _command_lines() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            yield (process / "cmdline").read_bytes()


def _inspected(server_id: str) -> str:
    listing = ["docker", "ps", "-aq", "--filter", f"label=faas.server={server_id}"]
    ids = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    assert ids
    return subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, check=True).stdout


def _holding(folder: Path) -> list[Path]:
    found = []
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):  # of a server beside us, and gone
            if CANARY.encode() in path.read_bytes():
                found.append(path)
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Not what is mounted of other kernels' making: sockets, pipes, and the roots of instances."""
    for current, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("rootfs", "scratch", "l", "ids")]
        yield from (path for name in names if (path := Path(current) / name).is_file() and not path.is_symlink())


def _file_system(path: Path) -> str:
    told = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout
    return told.strip()


def _closed_to_others(path: Path) -> bool:
    """Whether a mode on the way keeps out whoever is neither root nor the instance's own."""
    return any(not above.stat().st_mode & 0o001 for above in (path.parent, *path.parents)) or not (
        path.stat().st_mode & 0o004
    )
