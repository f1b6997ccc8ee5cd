"""The doctor's looks: at disk, clock, limits, certificates, versions, and at the network from inside an instance."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faas.checkup import clock as clocks
from faas.checkup.certificates import certificates
from faas.checkup.disk import room
from faas.checkup.limits import memory
from faas.cli import doctor_host
from faas.cli.doctor_host import engine_holes, is_held, is_of, runtime_holes
from faas.protocol import Outcome, Revision
from gateway.control.doctor import judged
from tests.support.certificates import certify
from tests.support.control import control

DAY = 86_400.0
WELL: dict[str, Any] = {
    "servers": ["10.0.0.1"], "answering": ["10.0.0.1"], "resolved": "192.0.2.1", "outside": True, "metadata": False,
    "host": [],
}  # fmt: skip


def states(findings: Any) -> dict[str, str]:
    return {one.check: one.state for one in findings}


def test_room_is_bytes_and_inodes_of_a_folder_that_need_not_be_there(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert set(states(room("data", folder, least_bytes=1, least_inodes=1)).values()) == {"ok"}
    full = list(room("data", folder, least_bytes=1 << 62, least_inodes=1 << 62))
    assert {one.state for one in full} == {"missing"}
    assert str(tmp_path) in full[0].fix


def test_a_clock_that_was_never_set_or_went_back_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "faas.db"
    file.touch()
    now = time.time()
    assert states(clocks.clock([file], now))["clock"] == "ok"
    behind = next(iter(clocks.clock([file], now - 3600)))
    assert (behind.state, "before the newest file" in behind.found) == ("missing", True)
    assert states(clocks.clock([], 1000.0))["clock"] == "missing"
    assert states(clocks.clock([tmp_path / "gone"], now))["clock"] == "ok"


def test_the_kernels_word_on_the_clock_is_a_note_and_zones_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "synchronized", lambda: False)
    assert states(clocks.clock([]))["clock sync"] == "note"
    assert clocks.zones().state == "ok"
    monkeypatch.setattr(clocks, "ZONE", "Nowhere/AtAll")
    assert clocks.zones().state == "missing"


def test_a_budget_that_leaves_the_machine_nothing_is_noted(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:        1048576 kB\n")
    assert memory(900 << 20, meminfo).state == "ok"
    assert memory(1 << 30, meminfo).state == "note"
    assert memory(1 << 30, tmp_path / "none").state == "ok"


def tls(cert: Path, key: Path, name: str = "", *, folder: str = "", now: float | None = None) -> list[tuple[str, str]]:
    return [(one.state, one.found) for one in certificates(str(cert), str(key), folder, name, now)]


def test_certificates_are_checked_for_name_time_and_key(tmp_path: Path) -> None:
    cert, key = certify(tmp_path, "a.example", "a.example")
    _, other = certify(tmp_path, "b.example", "b.example")
    assert tls(cert, key, "a.example")[0][0] == "note"  # it holds for a day
    assert tls(cert, key, "c.example") == [("missing", "it is not c.example's")]
    assert tls(cert, key, now=time.time() + 2 * DAY)[0][1].startswith("it has ended")
    assert tls(cert, key, now=time.time() - 2 * DAY)[0][1].startswith("it holds only from")
    assert "mismatch" in tls(cert, other)[0][1].lower()
    assert "No such file" in tls(cert, tmp_path / "gone.key")[0][1]
    assert [state for state, _ in tls(cert, key, folder=str(tmp_path))] == ["note"] * 3
    assert [one.state for one in certificates("", "", "", "")] == ["ok"]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("runc version 1.1.12\n", "open to CVE-2025-31133"),
        ("runc version 1.2.7\n", "open to"),
        ("runc version 1.3.2\n", "open to"),
        ("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1", "only its changelog"),
        ("runc version 1.2.8\n", ""),
        ("runc version 1.3.3\n", ""),
        ("crun version 1.8.1", ""),
    ],
)
def test_runtimes_with_newer_holes_are_told(version: str, words: str) -> None:
    assert words in runtime_holes(version)
    assert bool(words) == bool(runtime_holes(version))


def test_engines_with_an_old_runc_are_told() -> None:
    assert "CVE-2024-21626" in engine_holes("20.10.24+dfsg1")
    assert "CVE-2024-21626" in engine_holes("25.0.1")
    assert {engine_holes(version) for version in ("24.0.9", "25.0.2", "28.1.0", "")} == {""}


def test_a_lock_is_found_held_and_left_as_it_was(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not is_held(lock)
    lock.touch()
    assert not is_held(lock)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_held(lock)


def test_a_server_is_told_from_another_one_by_its_file_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(json.dumps({"api": "http://127.0.0.1:1"}))
    assert is_of(tmp_path, "http://127.0.0.1:1")
    assert not is_of(tmp_path, "http://127.0.0.1:2")
    other = tmp_path / "other"
    other.mkdir()
    (other / "server.json").symlink_to(tmp_path / "server.json")
    assert not is_of(other, "http://127.0.0.1:1")


def test_what_a_crash_left_is_noted_and_a_held_folder_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_host, "RUN", tmp_path / "run")
    monkeypatch.setattr("worker.network.programs.find", lambda name: None)
    data = tmp_path / "data"
    data.mkdir()
    assert "leftovers" not in states(doctor_host.of_the_server(data, ""))
    (tmp_path / "run" / hashlib.sha256(str(data).encode()).hexdigest()[:8]).mkdir(parents=True)
    assert states(doctor_host.of_the_server(data, ""))["leftovers"] == "note"
    (data / "lock").touch()
    with (data / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert states(doctor_host.of_the_server(data, ""))["lock"] == "missing"


def test_what_is_seen_from_inside_is_judged() -> None:
    assert set(states(judged(WELL)).values()) == {"ok"}
    offline = {**WELL, "answering": [], "resolved": "", "outside": False}
    assert states(judged(offline)) == {
        "sandbox": "ok", "sandbox dns": "note", "sandbox out": "note", "sandbox walls": "ok",
    }  # fmt: skip
    assert states(judged({**WELL, "metadata": True}))["sandbox walls"] == "missing"
    assert states(judged({**WELL, "host": ["10.0.0.1"]}))["sandbox walls"] == "missing"


class _Seen:
    """A run that wrote one line to its terminal."""

    instance_id = "i1"

    def __init__(self, said: bytes) -> None:
        self.terminal: Any = self
        self._said = [said]

    def plain(self) -> None: ...

    async def read(self) -> bytes:
        return self._said.pop() if self._said else b""

    async def outcome(self) -> Outcome:
        return Outcome(0)

    async def connect(self, port: int, seconds: float) -> Any: ...


async def test_a_server_tells_an_administrator_how_it_is_and_nobody_else(tmp_path: Path) -> None:
    said = json.dumps(WELL).encode()

    @contextlib.asynccontextmanager
    async def run(revision: Revision, terminal: bool) -> AsyncIterator[Any]:
        assert revision.image.startswith("runtime/python@sha256:")
        yield _Seen(said)

    async with control(tmp_path) as server:
        server.worker.on_run = run
        rows = (await server.call("GET", "/v1/doctor")).json()["findings"]
        found = {row["check"]: row["state"] for row in rows}
        assert {"ready", "disk", "clock", "time zones", "open files", "tls", "memory budget"} <= found.keys()
        assert found["sandbox dns"] == "ok"
        said = b"Traceback\r\nImportError: no json"
        rows = (await server.call("GET", "/v1/doctor")).json()["findings"]
        broken = next(row for row in rows if row["check"] == "sandbox")
        assert (broken["state"], "ImportError: no json" in broken["found"]) == ("missing", True)
        server.worker.on_run = None
        rows = (await server.call("GET", "/v1/doctor")).json()["findings"]
        assert next(row for row in rows if row["check"] == "sandbox")["state"] == "note"
        for token in (await server.a_token("deployer"), await server.a_token("admin", "team")):
            assert (await server.call("GET", "/v1/doctor", token=token)).status == 403


def test_every_line_has_a_fix_where_something_is_wrong(tmp_path: Path) -> None:
    for one in [*room("data", tmp_path, least_bytes=1 << 62), *judged({**WELL, "outside": False, "metadata": True})]:
        assert bool(one.fix) == (one.state != "ok")
