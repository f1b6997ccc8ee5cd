"""Secrets on a real server: the how-to's own commands, and a canary that is looked for everywhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]
PAGE = Path(__file__).parents[2] / "deploy" / "howto" / "secrets.md"
FIRST, SECOND = "canary-first-93f1c2", "canary-second-77ab04"
CODE = """
import hashlib, os

def handler(event, context):
    if event == "raise":
        raise ValueError("no")
    if event == "abort":
        os.abort()
    held = open("/run/secrets/db-password").read()
    return hashlib.sha256(held.encode()).hexdigest() if held == os.environ["DB_PASSWORD"] else "two values"
"""


@pytest.fixture(scope="module")
def answers(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block of the page's commands wrote, run in a folder with the function and two passwords."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "keeper").mkdir()
    (folder / "keeper" / "app.py").write_text(CODE)
    (folder / "keeper" / "faas.toml").write_text('name = "keeper"\nruntime = "python"\nhandler = "app.handler"\n')
    (folder / "password.txt").write_text(FIRST)
    (folder / "new-password.txt").write_text(SECOND)
    early = server.faas("push", folder / "keeper", "--secret", "DB_PASSWORD=db-password", check=False)
    assert "there is no secret db-password" in early.stderr
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "FAAS_URL": server.api, "FAAS_TOKEN": server.token}
    done = []
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        ran = subprocess.run(["bash", "-euc", block], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
        done.append(ran.stdout + ran.stderr)
    return done


def digest(text: str) -> str:
    return subprocess.run(["sha256sum"], input=text, capture_output=True, text=True, check=True).stdout.split()[0]


def test_the_how_tos_commands_store_use_and_change_a_secret(answers: list[str], server: RunningServer) -> None:
    stored, used, changed, sealed = answers
    assert re.search(r"db-password +1 +ready", stored)
    assert digest(FIRST) in used
    assert re.search(r"keeper@v\d+: 1 replaced", changed)
    assert digest(SECOND) in changed
    assert int(sealed) >= 2
    kept = server.faas("secret", "rm", "db-password", check=False)
    assert (kept.returncode, "is used by keeper@v" in kept.stderr) == (1, True)
    server.faas("secret", "rm", "api-token")


def test_neither_a_value_nor_one_before_it_is_seen_anywhere(
    answers: list[str], server: RunningServer, tmp_path: Path
) -> None:
    path = "/v1/functions/keeper/invocations"
    seen = [server.request("POST", path, json.dumps(how).encode(), api=True).body for how in ("raise", "abort", "x")]
    assert digest(SECOND).encode() in seen[-1]
    seen += [line.encode() for line in answers]
    seen += [server.faas(*words).stdout.encode() for words in (("logs", "keeper"), ("describe", "keeper"))]
    seen += list(_told_to_every_role(server))
    seen += list(_of_processes())
    server.faas("backup", tmp_path / "kept", "--with-secrets-key")
    assert _holding(tmp_path / "kept", "db-password"), "the test looks where they would be"
    for canary in (FIRST, SECOND):
        assert _holding(tmp_path / "kept", canary) == []
        assert [text[:200] for text in seen if canary.encode() in text] == []
        assert _holding(server.data, canary) == []


def test_in_memory_an_instances_own_folder_has_it_and_nobody_else_comes_there(
    answers: list[str], server: RunningServer
) -> None:
    server.faas("invoke", "keeper")
    bundles = Path("/run/faas") / server.id / "bundles"
    found = _holding(bundles, SECOND)
    assert found, "the test looks where it has to be"
    for path in found:
        assert path.parent.name == "secrets", "no configuration has it"
        assert path.stat().st_mode & 0o777 == 0o400
        assert path.parents[1].stat().st_mode & 0o007 == 0
        device = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=True).stdout
        assert device.strip() == "tmpfs"
    assert _holding(bundles, FIRST) == []
    key = server.data / "secrets-key"
    assert (key.stat().st_mode & 0o777, key.stat().st_uid) == (0o600, (server.data / "admin-token").stat().st_uid)


def _told_to_every_role(server: RunningServer) -> list[bytes]:
    """Each answer to each GET that the control API has, and the scraper's page."""
    described = server.get("/v1/openapi.json", api=True).json()
    values = {"{name}": "keeper", "{alias}": "live", "{runtime}": "python"}
    told = []
    for role in ("viewer", "deployer", "admin"):
        made = {"name": f"looks-for-canaries-{role}", "role": role}
        token = server.request("POST", "/v1/tokens", json.dumps(made).encode(), api=True).json()["token"]
        for path, operations in described["paths"].items():
            if "get" in operations:
                concrete = re.sub(r"\{\w+\}", lambda part: values.get(part[0], "none"), path)
                told.append(server.request("GET", concrete, api=True, token=token).body)
        told.append(server.request("GET", "/v1/secrets/db-password", api=True, token=token).body)
    assert any(b"db-password" in text for text in told)
    return told


def _of_processes() -> list[bytes]:
    """Command lines and environments, as root sees them: of every process, the function's among them."""
    told = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # it has ended
                told.append((process / name).read_bytes())
    return told


def _holding(folder: Path, canary: str) -> list[Path]:
    """Files with it: databases and their logs, blobs, layers, logs, configurations."""
    command = ["grep", "-rlaF", "--exclude-dir=rootfs", canary, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return [Path(row) for row in found.stdout.splitlines()]
