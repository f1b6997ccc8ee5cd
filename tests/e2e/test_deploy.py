"""`./deploy/up` as a new user runs it, and the commands of README.md, each of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from faas.certificate import fingerprint
from tests.support.leftovers import none_left
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(300)]


def blocks(text: str) -> list[str]:
    """The fenced blocks of a page that hold commands: those without a picture in them."""
    found = re.findall(r"```\n(.*?)```", text, re.S)
    return [block for block in found if "──" not in block]


@dataclass
class Installation:
    """What `deploy/up` of the checkout `root` makes below `folder`."""

    root: Path
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        places = {"FAAS_PREFIX": str(self.folder / "opt"), "FAAS_DATA": str(self.folder / "data")}
        listeners = dict.fromkeys(("FAAS_LISTEN", "FAAS_API_LISTEN", "FAAS_REGISTRY_LISTEN"), "127.0.0.1:0")
        return {**os.environ, **places, **listeners}

    def up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "deploy" / "up", *arguments], env=self.env, capture_output=True, text=True, timeout=280
        )

    @property
    def server(self) -> dict[str, str]:
        return dict(json.loads((self.folder / "data" / "server.json").read_text()))


def checkout(project_root: Path, folder: Path) -> Path:
    """A copy of what `deploy/up` needs of this checkout, as an update would leave it."""
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "faas", "registry", "gateway", "worker", "deploy", "tests"):
        path = project_root / name
        ignored = shutil.ignore_patterns("__pycache__", "unit", "e2e", "integration", "benchmarks")
        shutil.copytree(path, folder / name, ignore=ignored) if path.is_dir() else shutil.copy(path, folder / name)
    return folder


class Callers(threading.Thread):
    """Calls `url` again and again, over a connection of its own each time, as long as the block lasts."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.lost: list[str] = []
        self.answered = 0
        self.longest = 0.0
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.wait(0.02):
            began = time.monotonic()
            try:
                with urllib.request.urlopen(self.url, timeout=100) as answer:
                    answer.read()
                self.answered += 1
            except OSError as error:
                self.lost.append(str(error))
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> Callers:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self.join()


@pytest.fixture(scope="module")
def installation(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """`./deploy/up`, and in the end `./deploy/up --down`, which leaves nothing behind but the data."""
    folder = tmp_path_factory.mktemp("installation")
    made = Installation(checkout(project_root, folder / "checkout"), folder)
    with none_left(RunningServer(folder / "data").id, str(folder)):
        first = made.up()
        try:
            assert first.returncode == 0, first.stderr
            yield made
        finally:
            down = made.up("--down")
        assert down.returncode == 0, down.stderr
        time.sleep(0.5)


def test_a_second_run_changes_nothing(installation: Installation) -> None:
    before = installation.server
    second = installation.up()
    assert second.returncode == 0, second.stderr
    assert installation.server == before
    assert "installing" not in second.stderr
    assert f"{before['public']}/function/hello" in second.stdout


def test_the_readmes_first_commands_work_as_written(
    installation: Installation, project_root: Path, tmp_path: Path
) -> None:
    """With this server's address for 8080 and a folder for the answer."""
    commands = blocks((project_root / "README.md").read_text())[0].strip().splitlines()
    assert commands[0] == "./deploy/up"
    for command in commands[1:]:
        words = command.replace("localhost:8080", installation.server["public"])
        words = words.replace("thumb.jpg", f"{tmp_path}/thumb.jpg")
        done = subprocess.run(["sh", "-c", words], cwd=project_root, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "thumb.jpg").read_bytes()[:3] == b"\xff\xd8\xff"


def test_both_runtime_bases_are_built_and_the_server_itself_has_no_pillow(installation: Installation) -> None:
    """The thumbnail's Pillow is in its image alone."""
    python = installation.folder / "opt" / "current" / "bin" / "python"
    assert subprocess.run([python, "-c", "import PIL"], capture_output=True).returncode == 1
    request = urllib.request.Request(f"{installation.server['api']}/v1/runtimes")
    request.add_header("Authorization", f"Bearer {(installation.folder / 'data' / 'admin-token').read_text().strip()}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        listed = json.load(answer)["runtimes"]
    assert {row["name"].rstrip("0123456789.") for row in listed if "@sha256:" in row["reference"]} >= {"python", "node"}


def test_an_update_changes_over_and_one_that_does_not_get_ready_gives_way_and_no_client_is_refused(
    installation: Installation, project_root: Path, tmp_path: Path
) -> None:
    before = installation.server
    with Callers(f"{before['public']}/function/hello") as callers:
        update_and_go_back(installation, project_root, tmp_path, before)
    print(f"{callers.answered} calls, the longest took {callers.longest:.2f} s")
    assert callers.lost == []
    assert callers.answered > 10


def update_and_go_back(installation: Installation, project_root: Path, tmp_path: Path, before: dict[str, str]) -> None:
    good = checkout(project_root, tmp_path / "good")
    (good / "faas" / "__init__.py").write_text((good / "faas" / "__init__.py").read_text() + "# another version\n")
    updated = Installation(good, installation.folder).up()
    assert updated.returncode == 0, updated.stderr
    assert installation.server["pid"] != before["pid"]
    (backup,) = (installation.folder / "data" / "backups").iterdir()
    assert {file.name for file in backup.iterdir()} == {"faas.db", "registry.db"}
    release = (installation.folder / "opt" / "current").readlink()

    bad = checkout(project_root, tmp_path / "bad")
    (bad / "faas" / "server" / "main.py").write_text("raise RuntimeError('this version is broken')\n")
    refused = Installation(bad, installation.folder).up()
    assert refused.returncode == 1
    assert "this version is broken" in refused.stderr
    assert "the one before runs on" in refused.stderr
    assert (installation.folder / "opt" / "current").readlink() == release
    with urllib.request.urlopen(f"{installation.server['public']}/function/hello", timeout=30) as answer:
        assert answer.status == 200


def test_a_port_that_is_taken_is_said_with_its_holder(project_root: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = {**os.environ, "FAAS_LISTEN": f"127.0.0.1:{taken.getsockname()[1]}"}
        command = [sys.executable, "-m", "faas.cli", "serve", "--data", str(tmp_path / "other")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"pid {os.getpid()}" in done.stderr


def test_the_readmes_own_function_and_its_images_work_as_written(
    server: RunningServer, project_root: Path, tmp_path: Path
) -> None:
    _, own, images = (block.strip().splitlines() for block in blocks((project_root / "README.md").read_text()))
    commands = [*own, *images]
    assert [c.split()[0] for c in own] == ["faas", "faas", "curl", "faas"]
    assert {tuple(c.split()[:2]) for c in images} == {("faas", "image"), ("faas", "push")}
    env = {**os.environ, "FAAS_URL": server.api, "FAAS_TOKEN": server.token, "NO_COLOR": "1"}
    for command in commands:
        words = command.replace("localhost:8080", server.public)
        words = re.sub(r"^faas ", f"{sys.executable} -m faas.cli ", words)
        done = subprocess.run(
            ["sh", "-c", words],
            cwd=tmp_path,
            env={**env, "PYTHONPATH": str(project_root)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, (command, done.stderr)
        if command.startswith("curl"):
            assert "404" not in done.stdout
            assert done.stdout


def test_with_a_host_it_serves_other_machines_by_tls_and_later_runs_keep_that(installation: Installation) -> None:
    """The last one with this installation: from here on it speaks TLS."""
    before = installation.server
    refused = installation.up("--host", "functions.example.com", "--cert", "/none.crt", "--key", "/none.key")
    assert (refused.returncode, "/none.crt: No such file" in refused.stderr) == (1, True)
    assert installation.server == before
    first = installation.up("--host", "functions.example.com")  # back to the checkout's version at the same time
    assert first.returncode == 0, first.stderr
    assert "functions.example.com does not resolve here" in first.stderr
    server = installation.server
    assert {server[name].partition(":")[0] for name in ("public", "api", "registry")} == {"https"}
    ca = installation.folder / "data" / "tls" / "ca.crt"
    assert f"--ca-fingerprint {fingerprint(ca.read_text())}\n" in first.stdout
    trusting = ssl.create_default_context(cafile=ca)
    with urllib.request.urlopen(f"{server['public']}/function/hello", timeout=30, context=trusting) as answer:
        assert answer.status == 200
    again = installation.up()
    assert again.returncode == 0, again.stderr
    assert installation.server == server
    assert again.stdout == first.stdout


@pytest.mark.parametrize(
    "arguments", [["--host"], ["--cert", "a", "--key", "b"], ["--host", "a", "--key", "b"], ["--down", "--host", "a"]]
)
def test_what_does_not_go_together_is_refused_before_anything_happens(
    project_root: Path, tmp_path: Path, arguments: list[str]
) -> None:
    done = Installation(project_root, tmp_path).up(*arguments)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert done.stderr.startswith("error: ")
