"""`faas dev` on a real server: what is saved runs, errors are told, Ctrl-C leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]
PATIENCE = 30.0


class Dev:
    """The command in a process of its own; `said` has all that it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self._output = output

    @property
    def said(self) -> str:
        return self._output.read_text(errors="replace")

    def until(self, look: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not look():
            assert self.process.poll() is None, self.said[-4000:]
            assert time.monotonic() < deadline, self.said[-4000:]
            time.sleep(0.05)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@contextmanager
def dev(server: RunningServer, folder: Path, *flags: str) -> Iterator[Dev]:
    output = folder.with_suffix(".said")
    with open(output, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "faas.cli", "dev", str(folder), "--as", "Ada", *flags],
            env={**os.environ, "FAAS_URL": server.api, "FAAS_TOKEN": server.token, "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield Dev(process, output)
    finally:
        process.kill()
        process.wait()


def said_by(server: RunningServer, path: str) -> object:
    answered = server.get(path)
    return answered.json() if answered.status == 200 else None


def made(folder: Path, name: str, code: str, toml: str = "") -> Path:
    target = folder / name
    target.mkdir()
    (target / "app.py").write_text(code)
    (target / "faas.toml").write_text(
        f'name = "{name}"\nruntime = "python"\nhandler = "app.handler"\npublic = true\n{toml}\n'
    )
    return target


def wheel(path: Path, text: str) -> None:
    """A package `grown` with one module."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("grown.py", f"WORDS = {text!r}\n")
        info = path.name.removesuffix("-py3-none-any.whl") + ".dist-info"
        version = info.removesuffix(".dist-info").partition("-")[2]
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: grown\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_what_is_saved_runs_and_what_went_wrong_is_told(server: RunningServer, folder: Path) -> None:
    name = "dev-saved"
    place = made(folder, name, "def handler(event, context):\n    print('said by one')\n    return 'one'\n")
    path = f"/function/{name}--dev-ada"
    with dev(server, place) as running:
        running.until(lambda: path in running.said)
        assert said_by(server, path) == "one"
        running.until(lambda: "said by one" in running.said and "REPORT Duration" in running.said)
        (place / "app.py").write_text("import os\n\ndef handler(event, context):\n    return os.environ['WORDS']\n")
        (place / "faas.toml").write_text((place / "faas.toml").read_text() + '[env]\nWORDS = "from the file"\n')
        running.until(lambda: said_by(server, path) == "from the file")
        (place / "app.py").write_text("def handler(event, context:\n")
        running.until(lambda: "never closed" in running.said and "calls get this error" in running.said)
        assert server.get(path).status == 502
        (place / "faas.toml").write_text("name = 3\n")
        running.until(lambda: "name" in running.said.rpartition("calls get this error")[2])
        wheels = place / "wheels"
        wheels.mkdir()
        wheel(wheels / "grown-1.0-py3-none-any.whl", "a package's words")
        (place / "requirements.txt").write_text("grown\n")
        (place / "app.py").write_text("import grown\n\ndef handler(event, context):\n    return grown.WORDS\n")
        (place / "faas.toml").write_text(
            f'name = "{name}"\nruntime = "python"\nhandler = "app.handler"\npublic = true\nmemory = 256\n'
        )
        running.until(lambda: said_by(server, path) == "a package's words")
        assert name not in server.get("/v1/functions", api=True).text
        assert f"{name}--dev-ada" in server.get("/v1/dev", api=True).text
        assert running.interrupt() == 130
    assert server.get(path).status == 404, server.log_tail()
    assert list((server.data / "dev").iterdir()) == []


def test_two_people_work_on_one_function_and_neither_moves_what_is_live(server: RunningServer, folder: Path) -> None:
    name = "dev-shared"
    place = made(folder, name, "def handler(event, context):\n    return 'live'\n")
    server.faas("push", place)
    (place / "app.py").write_text("def handler(event, context):\n    return 'mine'\n")
    other = folder / "other"
    other.mkdir()
    theirs = made(other, name, "def handler(event, context):\n    return 'theirs'\n")
    with dev(server, place) as one, dev(server, theirs, "--as", "Bob") as two:
        one.until(lambda: said_by(server, f"/function/{name}--dev-ada") == "mine")
        two.until(lambda: said_by(server, f"/function/{name}--dev-bob") == "theirs")
        assert said_by(server, f"/function/{name}") == "live"
        with dev(server, theirs, "--as", "Ada") as taking:
            taking.until(lambda: said_by(server, f"/function/{name}--dev-ada") == "theirs")
            deadline = time.monotonic() + PATIENCE
            while one.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert "has taken" in one.said
            assert one.process.returncode == 1
            assert (taking.interrupt(), two.interrupt()) == (130, 130)
    assert server.faas("versions", name, "-o", "name").stdout.split() == ["v1"]
