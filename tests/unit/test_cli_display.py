"""Tables, sizes and times; the progress of a push with and without a terminal; the doctor's findings."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from faas.cli import doctor, output
from faas.cli.bars import Display
from faas.cli.logs import since_when
from tests.support.cli import CommandLine
from tests.support.fake_api import FakeApi


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    lines = output.table(["A", "LONG"], [["wide cell", "x"], ["", "y"]])
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in lines] == [
        "A          LONG",
        "wide cell  x",
        "           y",
    ]
    assert len(output.table(["A"], [])) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (200 * 1024, "200 KB"), (5 << 30, "5.0 GB"), (1 << 40, "1.0 TB")],
)
def test_sizes(value: int, text: str) -> None:
    assert output.size(value) == text


@pytest.mark.parametrize(
    ("then", "text"),
    [(995, "5s"), (700, "5m"), (1000 - 7200, "2h"), (1000 - 86_400 * 9, "9d"), (2000, "0s"), (None, "-"), ("x", "-"),
     ("1970-01-01T00:16:30Z", "10s")],
)  # fmt: skip
def test_ages(then: object, text: str) -> None:
    assert output.age(then, now=1000) == text


def test_since_is_a_duration_or_a_time() -> None:
    assert since_when("10m", 1000) == 400
    assert since_when("90", 1000) == 910
    assert since_when("1900000000.25", 1000) == 1_900_000_000.25
    assert since_when("1970-01-01T00:00:05+00:00", 1000) == 5


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


def push_like(display: Display) -> None:
    with display:
        display.stage("code")
        display.stage("upload")
        display.layer("sha256:a", "runtime base", 9, 9, "mounted")
        for done in (0, 512, 1024):
            display.layer("sha256:b", "code", done, 1024, "uploading")
        display.layer("sha256:b", "code", 1024, 1024, "done")
        display.line("warning: \x1b[31mred")
        display.stage("deploy")
        display.detail("v7")


def test_without_a_terminal_there_is_one_line_per_finished_stage() -> None:
    stream = io.StringIO()
    push_like(Display(stream, live=False, clock=Clock()))
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["code", "warning:", "upload", "deploy"]
    assert lines[1] == "warning: \\x1b[31mred"
    assert lines[2].endswith("code 1.0 KB; 1 already there")
    assert re.fullmatch(r"  deploy +\d+\.\d\d s  v7", lines[3])
    assert "\x1b" not in stream.getvalue()


def test_on_a_terminal_a_bar_per_layer_moves_in_place() -> None:
    stream = io.StringIO()
    push_like(Display(stream, live=True, clock=Clock()))
    drawn = stream.getvalue()
    assert "[............]" not in drawn
    assert re.search(r"code +\[#{12}\.{12}\]  50%  512 B of 1\.0 KB", drawn)
    assert re.search(r"runtime base  already there", drawn)
    assert "\x1b[3F\x1b[J" in drawn


def test_a_stage_that_fails_is_marked() -> None:
    stream = io.StringIO()
    display = Display(stream, live=False, clock=Clock())
    display.stage("deploy")
    with pytest.raises(RuntimeError), display:
        raise RuntimeError
    assert stream.getvalue().rstrip().endswith("failed")


def test_doctor_has_a_line_per_check_and_a_remedy_for_what_is_missing(faas: CommandLine) -> None:
    done = faas.process("doctor")
    lines = {line[8:22].strip(): line for line in done.out.splitlines()}
    assert {"python", "root", "oci runtime", "engine", "overlayfs", "cgroup", "nft", "loop devices", "disk", "clock",
            "server"} <= lines.keys()  # fmt: skip
    assert lines["python"].startswith("ok ")
    assert lines["server"].startswith("ok ")
    missing = [line for line in lines.values() if line.startswith("missing")]
    assert done.code == (1 if missing else 0)
    gone = faas.process("doctor", "-o", "json", FAAS_URL="http://127.0.0.1:1")
    assert gone.code == 1
    server = next(f for f in json.loads(gone.out) if f["check"] == "server")
    assert server["state"] == "missing"
    assert "faas serve" in server["fix"]
    assert "port 8080" in gone.out


def test_doctor_needs_nothing_on_a_machine_that_only_talks_to_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(doctor, "DOCKER_SOCKETS", (str(tmp_path / "none"),))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    elsewhere = {f.check: f for f in doctor.host_findings(tmp_path, hosting=False, running=True)}
    assert {f.state for f in elsewhere.values()} <= {"ok", "note"}
    here = {f.check: f for f in doctor.host_findings(tmp_path, hosting=True, running=True)}
    assert {"root", "oci runtime", "engine", "nft"} <= {f.check for f in here.values() if f.state == "missing"}
    assert asdict(here["oci runtime"])["fix"] == "apt-get install runc"


def test_doctor_takes_an_engine_instead_of_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(doctor, "_answers", lambda path: True)
    found = {(f.check, f.state) for f in doctor.host_findings(tmp_path, hosting=True, running=True)}
    assert {("root", "note"), ("engine", "ok")} <= found  # what is known against its version is a note of its own
    assert not {(check, "missing") for check in ("oci runtime", "nft", "loop devices")} & found
