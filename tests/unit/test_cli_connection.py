"""Which server commands talk to, with which token; `faas login` and what it writes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faas.cli.login import add_docker_login, write_private
from faas.cli.registry import registry_host, registry_url
from faas.cli.session import find
from faas.client_errors import Unreachable
from faas.errors import FaasError, InvalidInput
from faas.settings import ClientSettings
from tests.support.cli import CommandLine
from tests.support.fake_api import INFO, TOKEN, FakeApi, Reply, Seen, refusal


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def places(tmp_path: Path, **given: Any) -> ClientSettings:
    return ClientSettings(**given, config_home=tmp_path / "config", data=tmp_path / "data")


def leave_server(tmp_path: Path, url: str = "http://host:1", token: str = "of-host") -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "server.json").write_text(json.dumps({"api": url, "pid": 1}))
    (tmp_path / "data" / "admin-token").write_text(token + "\n")


def log_in(tmp_path: Path, url: str = "http://login:1", token: str = "of-login") -> None:
    write_private(tmp_path / "config" / "config.toml", f'url = "{url}"\ntoken = "{token}"\nuser = "ci"\n')


def test_the_environment_comes_first_then_the_login_then_this_host(tmp_path: Path) -> None:
    leave_server(tmp_path)
    found = find(places(tmp_path))
    assert (found.url, found.token, found.user) == ("http://host:1", "of-host", "admin")
    log_in(tmp_path)
    found = find(places(tmp_path))
    assert (found.url, found.token, found.user) == ("http://login:1", "of-login", "ci")
    found = find(places(tmp_path, url="http://env:1", token="of-env"))
    assert (found.url, found.token, found.url_source, found.token_source) == (
        "http://env:1", "of-env", "FAAS_URL", "FAAS_TOKEN",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["admin-token", "server.json"])
def test_what_a_link_leads_to_is_no_token_and_no_address(tmp_path: Path, name: str) -> None:
    """The data folder is open to an account that may not read what root may."""
    leave_server(tmp_path, token="of-host")
    planted = tmp_path / "data" / name
    planted.rename(tmp_path / "elsewhere")
    planted.symlink_to(tmp_path / "elsewhere")
    if name == "admin-token":
        assert (find(places(tmp_path)).url, find(places(tmp_path)).token) == ("http://host:1", "")
    else:
        with pytest.raises(Unreachable):
            find(places(tmp_path))
    planted.unlink()
    os.mkfifo(planted)  # would keep its reader waiting
    with pytest.raises(Unreachable) if name == "server.json" else contextlib.nullcontext():
        assert find(places(tmp_path)).token == ""


def test_a_token_is_never_sent_to_another_server(tmp_path: Path) -> None:
    leave_server(tmp_path)
    log_in(tmp_path)
    assert find(places(tmp_path, url="http://stranger:1")).token == ""
    assert find(places(tmp_path, url="http://host:1/")).token == "of-host"
    assert find(places(tmp_path, url="http://login:1")).token == "of-login"


def test_no_server_at_all_is_unreachable_and_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unreachable):
        find(places(tmp_path))
    write_private(tmp_path / "config" / "config.toml", "url = \n")
    with pytest.raises(InvalidInput, match=r"config\.toml"):
        find(places(tmp_path))


def test_the_token_is_not_in_the_repr(tmp_path: Path) -> None:
    leave_server(tmp_path)
    assert "of-host" not in repr(find(places(tmp_path)))


def test_login_checks_the_token_and_writes_both_files_for_the_owner_alone(faas: CommandLine) -> None:
    host = faas.api.url.removeprefix("http://")
    asked: list[str] = []

    def registry(seen: Seen) -> Reply:
        asked.append(seen.headers["authorization"])
        return Reply({})

    faas.api.replies["GET", "/v1/info"] = Reply({**INFO, "registry": host})
    faas.api.replies["GET", "/v2/"] = registry
    docker = faas.home / "docker" / "config.json"
    write_private(docker, json.dumps({"auths": {"other:1": {"auth": "x"}}, "detachKeys": "y"}))
    del faas.env["FAAS_URL"], faas.env["FAAS_TOKEN"]
    done = faas.process("login", host, "--token-stdin", "--user", "ci", stdin=TOKEN + "\n")
    assert done.code == 0, done.err
    assert done.last_line == faas.api.url
    assert TOKEN not in done.out + done.err
    written = faas.home / "config" / "faas" / "config.toml"
    assert tomllib.loads(written.read_text()) == {
        "url": faas.api.url, "token": TOKEN, "user": "ci", "docker": host,
    }  # fmt: skip
    config = json.loads(docker.read_text())
    assert base64.b64decode(config["auths"][host]["auth"]).decode() == f"ci:{TOKEN}"
    assert (config["auths"]["other:1"], config["detachKeys"]) == ({"auth": "x"}, "y")
    assert asked == ["Basic " + config["auths"][host]["auth"]]
    for path in (written, docker):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    faas.api.replies["GET", "/v1/functions"] = Reply({"functions": []})
    assert faas.process("ls").code == 0


def test_login_with_a_wrong_token_writes_nothing(faas: CommandLine) -> None:
    done = faas.process("login", faas.api.url, "--token-stdin", stdin="wrong\n")
    assert done.code == 4
    assert "unknown token" in done.err
    assert not (faas.home / "config").exists()
    assert faas.process("login", faas.api.url, "--token-stdin", stdin="\n").code == 2
    assert "--token-stdin" in faas.process("login", faas.api.url).err


def test_login_says_where_the_registry_does_not_take_the_user(faas: CommandLine) -> None:
    host = faas.api.url.removeprefix("http://")
    faas.api.replies["GET", "/v1/info"] = Reply({**INFO, "registry": host})
    faas.api.replies["GET", "/v2/"] = refusal(401, "UNAUTHORIZED", "no")
    done = faas.process("login", host, "--token-stdin", stdin=TOKEN + "\n")
    assert done.code == 4
    assert "--user NAME" in done.err


def test_a_registry_that_cannot_be_reached_is_said_and_dockers_file_may_be_left_alone(faas: CommandLine) -> None:
    done = faas.process("login", faas.api.url, "--token-stdin", stdin=TOKEN + "\n")
    assert done.code == 0
    assert "could not be reached" in done.err
    (faas.home / "docker" / "config.json").unlink()
    faas.process("login", faas.api.url, "--token-stdin", "--no-docker", stdin=TOKEN + "\n")
    assert not (faas.home / "docker" / "config.json").exists()


def test_dockers_file_is_not_overwritten_where_it_is_not_understood(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for text in ("not json", "[]", '{"auths": []}'):
        path.write_text(text)
        with pytest.raises(FaasError):
            add_docker_login(path, "h:1", "admin", "t")
        assert path.read_text() == text
    path.write_text('{"credsStore": "pass"}')
    assert add_docker_login(path, "h:1", "admin", "t") == "pass"


def test_a_linked_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_private(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"link", "real"}


@pytest.mark.parametrize(
    ("registry", "api", "url", "host"),
    [
        ("127.0.0.1:5000", "http://127.0.0.1:8081", "http://127.0.0.1:5000", "127.0.0.1:5000"),
        ("r.example:5000", "https://r.example:8081", "https://r.example:5000", "r.example:5000"),
        ("http://r:5000/", "https://r:8081", "http://r:5000", "r:5000"),
    ],
)
def test_the_registry_has_the_apis_scheme_unless_it_says_so(registry: str, api: str, url: str, host: str) -> None:
    assert (registry_url(registry, api), registry_host(registry)) == (url, host)
