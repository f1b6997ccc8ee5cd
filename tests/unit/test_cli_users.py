"""Users, tokens and the audit log from the command line, against a real gateway: the how-to's own commands."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from faas.cli.namespaces import qualified
from tests.support.control import Control, control

PAGE = Path(__file__).parents[2] / "deploy" / "howto" / "users-and-audit.md"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    (tmp_path / "data").mkdir()
    async with control(tmp_path / "data") as running:
        running.gateway.info = dataclasses.replace(running.gateway.info, registry="")
        yield running


async def shell(server: Control, folder: Path, script: str, *, code: int = 0) -> str:
    """What a script wrote, whose `faas` is this one, for who is logged in as the administrator."""
    (folder / "bin").mkdir(exist_ok=True)
    faas = folder / "bin" / "faas"
    faas.write_text(f'#!/bin/sh\nexec {sys.executable} -m faas.cli "$@"\n')
    faas.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{faas.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HOME": str(folder),
        "FAAS_URL": server.api,
        "FAAS_TOKEN": server.token,
        "FAAS_DATA": str(folder / "nothing"),
        "NO_COLOR": "1",
    }
    env.pop("XDG_CONFIG_HOME", None)
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    ran = await asyncio.create_subprocess_exec("bash", "-euc", script, cwd=folder, env=env, **pipes)  # type: ignore[arg-type]
    out, _ = await ran.communicate()
    assert ran.returncode == code, out.decode()
    return out.decode()


async def test_the_how_tos_commands_do_what_it_says(server: Control, tmp_path: Path) -> None:
    for namespace in ("mobile", "default"):
        await server.deploy("hello", namespace="" if namespace == "default" else namespace)
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    new, login, pipeline, gone, who = blocks
    said = await shell(server, tmp_path, new)
    assert re.search(r"^ada +mobile: deployer, web: viewer", said, re.M)
    said = await shell(server, tmp_path, login)
    assert "ada by the token first@ada\n  deployer in mobile\n  viewer in web" in said
    assert "hello.mobile" in await shell(server, tmp_path, "env -u FAAS_TOKEN faas ls -o name")
    assert "hello.mobile" in await shell(server, tmp_path, "env -u FAAS_TOKEN faas describe hello -o name")
    said = await shell(server, tmp_path, "env -u FAAS_TOKEN faas describe hello.default", code=4)
    assert "ada may not read in default" in said
    said = await shell(server, tmp_path, pipeline)
    assert "the old one opens nothing any more" in said
    assert re.search(r"^ci +deployer +mobile +api-\* +all +active +never", said, re.M)
    assert re.search(r"^laptop@ada +its user's +all +all +all +active +never", said, re.M)
    await shell(server, tmp_path, gone)
    await shell(server, tmp_path, "test ! -e .config/faas/config.toml")
    said = await shell(server, tmp_path, who)
    assert re.search(r"admin .*users\.create +users/ada +done", said)
    assert re.search(r"ada \(first@ada\) .*tokens\.create +tokens/laptop@ada +done", said)
    assert said.count("records are as they were written") == 2
    token = (tmp_path / "laptop.token").read_text().strip()
    assert token.startswith("faas_")
    assert token not in (tmp_path / "audit.jsonl").read_text()
    (tmp_path / "audit.jsonl").write_text((tmp_path / "audit.jsonl").read_text().replace("users/ada", "users/eve"))
    assert "is not what was written" in await shell(server, tmp_path, "faas audit verify audit.jsonl", code=1)


async def test_logout_with_revoke_ends_the_token_that_was_remembered(server: Control, tmp_path: Path) -> None:
    script = """
        faas token create ci --role viewer > ci
        env -u FAAS_TOKEN faas login "$FAAS_URL" --token-stdin < ci
        env -u FAAS_TOKEN faas whoami -o name
        faas logout --revoke
        faas logout
    """
    said = await shell(server, tmp_path, script)
    assert "\nci\n" in said
    assert "nobody is logged in here" in said
    assert (await server.call("GET", "/v1/tokens")).json()["tokens"] == []


async def test_who_may_nothing_is_told_so_and_of_whom(server: Control, tmp_path: Path) -> None:
    await server.call("POST", "/v1/users", {"name": "ada", "roles": {"team": "viewer"}})
    made = await server.call("POST", "/v1/tokens", {"name": "a", "user": "ada"})
    said = await shell(server, tmp_path, f"FAAS_TOKEN={made.json()['token']} faas user ls", code=4)
    assert "ada may not administer" in said


@pytest.mark.parametrize(
    ("name", "namespace", "meant"),
    [
        ("hello", "team", "hello.team"),
        ("hello:v7", "team", "hello.team:v7"),
        ("hello.other", "team", "hello.other"),
        ("hello.default", "team", "hello.default"),
        ("hello", "", "hello"),
        ("", "team", ""),
    ],
)
def test_a_name_without_a_namespace_is_of_the_one_that_was_remembered(name: str, namespace: str, meant: str) -> None:
    assert qualified(name, namespace) == meant
