"""`./deploy/up` as a new user runs it, and the commands of README.md, each of them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.leftovers import none_left
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.timeout(300)]


def blocks(text: str) -> list[str]:
    """The fenced blocks of a page that hold commands: those without a picture in them."""
    found = re.findall(r"```\n(.*?)```", text, re.S)
    return [block for block in found if "──" not in block]


@dataclass
class Installation:
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


@pytest.fixture
def installation(project_root: Path, tmp_path: Path) -> Iterator[Installation]:
    made = Installation(project_root, tmp_path)
    yield made
    made.up("--down")


def test_one_command_brings_up_a_server_with_samples_and_a_second_run_changes_nothing(
    installation: Installation, project_root: Path, tmp_path: Path
) -> None:
    with none_left(RunningServer(tmp_path / "data").id, str(tmp_path)):
        first = installation.up()
        assert first.returncode == 0, first.stderr
        before = installation.server
        second = installation.up()
        assert second.returncode == 0, second.stderr
        assert installation.server == before
        assert "installing" not in second.stderr
        assert f"{before['public']}/function/hello" in second.stdout
        # The README's block, with this server's port for 8080 and the folder for the answer.
        commands = blocks((project_root / "README.md").read_text())[0].strip().splitlines()
        assert commands[0] == "./deploy/up"
        for command in commands[1:]:
            words = command.replace("localhost:8080", before["public"]).replace("thumb.jpg", f"{tmp_path}/thumb.jpg")
            done = subprocess.run(["sh", "-c", words], cwd=project_root, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "thumb.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
        down = installation.up("--down")
        assert down.returncode == 0, down.stderr
        time.sleep(0.5)


def test_a_port_that_is_taken_is_said_with_its_holder(installation: Installation, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        env = {**installation.env, "FAAS_LISTEN": f"127.0.0.1:{taken.getsockname()[1]}"}
        command = [sys.executable, "-m", "faas.cli", "serve", "--data", str(tmp_path / "other")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert f"pid {os.getpid()}" in done.stderr


def test_the_readmes_own_function_works_as_written(server: RunningServer, project_root: Path, tmp_path: Path) -> None:
    commands = blocks((project_root / "README.md").read_text())[1].strip().splitlines()
    assert [c.split()[0] for c in commands] == ["faas", "faas", "curl", "faas"]
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
