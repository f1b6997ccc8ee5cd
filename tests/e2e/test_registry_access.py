"""Who reaches a whole server's images: everybody where a policy says so, a narrowed token where its patterns fit."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from faas.oci.digest import Digest
from tests.e2e.test_registry import HELLO, call
from tests.support.commands import run
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]


def without_login(server: RunningServer, path: str) -> int:
    try:
        with urllib.request.urlopen(f"{server.registry}{path}", timeout=20) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_policy_makes_images_public_and_takes_that_back(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "shown", HELLO)
    pulled = ("/v2/shown/manifests/latest", "/v2/shown/tags/list")
    assert [without_login(server, path) for path in pulled] == [401, 401]
    assert server.faas("image", "policy", "set", "shown", "--sparse").stdout == "shown\n"
    assert server.faas("image", "policy", "set", "shown", "--public").stdout == "shown\n"
    rows = json.loads(server.faas("image", "policy", "ls", "-o", "json").stdout)
    assert {"pattern": "shown", "public": True, "sparse": True} in rows
    assert [without_login(server, path) for path in pulled] == [200, 200]
    assert without_login(server, "/v2/") == 401
    server.faas("image", "policy", "set", "shown", "--no-public")
    assert [without_login(server, path) for path in pulled] == [401, 401]
    assert server.faas("image", "policy", "rm", "shown").stdout == "shown\n"
    assert server.faas("image", "policy", "rm", "shown", check=False).returncode == 3
    assert server.faas("image", "policy", "set", "shown", check=False).returncode == 2
    assert server.faas("image", "policy", "set", "Shown", "--public", check=False).returncode == 2
    assert "shown" not in server.faas("image", "policy", "ls", "-o", "name").stdout.split()


def test_a_narrowed_token_reaches_the_repositories_that_it_names(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "closed", HELLO)
    words = ("--role", "deployer", "--repository", "narrow/*", "--repository", "nar")
    token = server.faas("token", "create", "narrow", *words).stdout.strip()
    listed = {row["name"]: row for row in json.loads(server.faas("token", "ls", "-o", "json").stdout)}
    assert listed["narrow"]["repositories"] == ["narrow/*", "nar"]
    assert "narrow/*, nar" in server.faas("token", "ls").stdout
    data = b"a layer"
    path = f"/v2/narrow/app/blobs/uploads/?digest={Digest.of(data)}"
    assert call(server, "narrow", token, "POST", path, data).status == 201
    assert call(server, "narrow", token, "GET", f"/v2/narrow/app/blobs/{Digest.of(data)}").status == 200
    assert call(server, "narrow", token, "GET", "/v2/closed/manifests/latest").status == 403
    assert call(server, "narrow", token, "POST", "/v2/closed/blobs/uploads/").status == 403
    repositories = json.loads(call(server, "narrow", token, "GET", "/v2/_catalog").body)["repositories"]
    assert "closed" not in repositories
    assert "narrow/app" in repositories
    for bad in (("--role", "admin"), ("--role", "caller"), ("--role", "viewer", "--namespace", "other")):
        made = server.faas("token", "create", "bad", *bad, "--repository", "narrow/*", check=False)
        assert made.returncode == 2, bad
    server.faas("token", "revoke", "narrow")
    assert call(server, "narrow", token, "GET", "/v2/").status == 401


@pytest.fixture(scope="module")
def token_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("tokens") / "data"
    with RunningServer(folder, "--driver", "oci", "--registry-auth", "token") as running:
        yield running


@pytest.mark.docker
def test_docker_pushes_and_pulls_with_what_faas_login_wrote(token_server: RunningServer, tmp_path: Path) -> None:
    server, config = token_server, tmp_path / "docker" / "config.json"
    config.parent.mkdir()
    config.write_text('{"auths": {"other.example": {"auth": "eDp5"}}, "psFormat": "table"}')
    words = [sys.executable, "-m", "faas.cli", "login", server.api, "--token-stdin"]
    environment = {
        **os.environ,
        "XDG_CONFIG_HOME": str(tmp_path),
        "HOME": str(tmp_path),
        "DOCKER_CONFIG": str(config.parent),
    }
    done = subprocess.run(words, input=server.token, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    written = json.loads(config.read_text())
    host = server.registry.partition("://")[2]
    assert written["auths"].keys() == {"other.example", host}
    assert written["psFormat"] == "table"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    docker, image = ("docker", "--config", config.parent), f"{host}/pushed:v1"
    try:
        run("docker", "build", "-q", "-t", image, tmp_path)
        run(*docker, "push", image)
        run("docker", "rmi", image)
        run(*docker, "pull", image)
    finally:
        run("docker", "rmi", "-f", image, check=False)


def test_wrong_tokens_have_to_wait_and_the_right_one_has_not(token_server: RunningServer) -> None:
    server, seen = token_server, []
    while 429 not in seen:
        assert len(seen) < 20
        seen += [server.get("/v1/info", api=True, token="faas_wrong").status]
    assert seen[:5] == [401] * 5
    assert server.get("/v1/info", api=True).status == 200
    seen = []
    while 429 not in seen:
        assert len(seen) < 20
        seen += [call(server, "admin", "faas_wrong", "GET", "/v2/").status]
    assert seen[:5] == [401] * 5
    assert call(server, "admin", server.token, "GET", "/v2/").status == 200
