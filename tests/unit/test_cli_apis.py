"""`faas api` and `faas route` against a whole gateway around a fake worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from faas.cli import main
from tests.support.cli import Done
from tests.support.control import Control, control


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        await running.deploy("users", route=[{"path": "/own"}])
        yield running


Faas = Callable[..., Awaitable[Done]]


@pytest.fixture
def faas(server: Control, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Faas:
    for name, value in {"FAAS_URL": server.api, "FAAS_TOKEN": server.token, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)

    async def run(*args: object, code: int = 0) -> Done:
        got = await asyncio.to_thread(main, [str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert got == code, err
        return Done(got, out, err)

    return run


async def test_an_api_is_put_changed_shown_and_removed(server: Control, faas: Faas) -> None:
    done = await faas("api", "put", "shop", "--host", "shop.example.com", "--stage", "$default",
                      "--stage", "test:alias=next,level=debug")  # fmt: skip
    assert done.out == "http://shop.example.com:8080\nhttp://shop.example.com:8080/test\n"
    await faas("route", "add", "GET /users/{id}", "users", "--api", "shop")
    changed = await faas("api", "put", "shop", "--base-path", "/v1")
    assert changed.last_line == "http://shop.example.com:8080/v1/test"
    page = (await faas("api", "describe", "shop")).out
    assert "test alias=next level=debug" in page  # what was not given stayed
    assert "/users/{id}  users" in page
    assert (await faas("api", "ls", "-o", "name")).out == "default\nshop\n"
    assert "shop.example.com" in (await faas("api", "ls")).out
    assert (await faas("api", "rm", "shop")).out == "shop\n"
    await faas("api", "describe", "shop", code=3)
    assert "needs hosts or a base_path" in (await faas("api", "put", "shop", code=2)).err
    assert "NAME[:VAR=VALUE" in (await faas("api", "put", "shop", "--stage", "a:b", code=2)).err


async def test_an_api_as_json_can_be_put_back(server: Control, faas: Faas, tmp_path: Path) -> None:
    await faas("api", "put", "shop", "--base-path", "/shop")
    await faas("route", "add", "$default", "users", "--api", "shop")
    file = tmp_path / "shop.json"
    file.write_text((await faas("api", "describe", "shop", "-o", "json")).out)
    await faas("api", "rm", "shop")
    assert (await faas("api", "put", "shop", "--file", file)).last_line == "http://127.0.0.1:8080/shop"
    assert json.loads((await faas("api", "describe", "shop", "-o", "json")).out) == json.loads(file.read_text())


async def test_routes_are_listed_added_and_removed(server: Control, faas: Faas) -> None:
    added = await faas(
        "route", "add", "GET,POST /users/{id}", "users", "--rewrite", "/in/{id}", "--timeout", "2s", "--body-limit", 10,
        "--private", "--with", '{ payload = "1.0" }',
    )  # fmt: skip
    [shown] = [r for r in json.loads((await faas("route", "ls", "-o", "json")).out) if r["owner"] == "api"]
    assert {key: shown[key] for key in ("methods", "rewrite", "timeout", "body_limit", "public", "payload")} == {
        "methods": ["GET", "POST"], "rewrite": "/in/{id}", "timeout": "2s", "body_limit": 10, "public": False,
        "payload": "1.0",
    }  # fmt: skip
    table = (await faas("route", "ls")).out
    assert "faas.toml" in table
    assert (await faas("route", "ls", "--api", "default", "-o", "name")).out.splitlines()[0] == added.last_line
    assert (await faas("route", "rm", added.last_line)).last_line == added.last_line
    assert (await server.call("GET", "/users/7", public=True)).status == 404
    await faas("route", "rm", added.last_line, code=3)
    own = (await faas("route", "ls", "-o", "name")).last_line
    assert "take its [[route]] out of faas.toml" in (await faas("route", "rm", own, code=1)).err
    assert "is taken: the function users has it" in (await faas("route", "add", "/own", "users", code=1)).err
    assert "later is not deployed" in (await faas("route", "add", "/later", "later")).err
    assert "--with must be a TOML table" in (await faas("route", "add", "/x", "users", "--with", "x", code=2)).err


async def test_documents_go_out_and_come_in(server: Control, faas: Faas, tmp_path: Path) -> None:
    file = tmp_path / "pets.json"
    file.write_text(json.dumps({
        "openapi": "3.1.0", "info": {"title": "pets", "version": "1"}, "x-mine": 1,
        "paths": {"/pets/{id}": {"get": {"x-faas-function": "users"}}},
    }))  # fmt: skip
    assert "needs hosts or a base_path" in (await faas("api", "import", "pets", file, code=2)).err
    done = await faas("api", "import", "pets", file, "--base-path", "/pets")
    assert (done.out, "warning: /x-mine: left out" in done.err) == ("http://127.0.0.1:8080/pets\n", True)
    assert (await server.call("GET", "/pets/pets/7", public=True)).status == 200
    out = (await faas("api", "export", "pets")).out
    file.write_text(out)
    await faas("api", "import", "pets", file)
    assert (await faas("api", "export", "pets")).out == out
    file.write_text("openapi: 3.1.0\npaths:\n  /pets/{id}:\n    get: {x-faas-function: users}\n")
    await faas("api", "import", "pets", file)
    assert (await server.call("GET", "/pets/pets/7", public=True)).status == 200
    file.write_text("openapi: [")
    assert "neither JSON nor YAML" in (await faas("api", "import", "pets", file, code=2)).err


async def test_names_of_apis_are_completed(server: Control, faas: Faas) -> None:
    from click.core import Context

    from faas.cli.api import api_describe
    from faas.cli.api_name import complete_apis

    await faas("api", "put", "shop.team", "--base-path", "/shop")
    context = Context(api_describe)
    words = await asyncio.to_thread(complete_apis, context, api_describe.params[0], "s")
    assert [word.value for word in words] == ["shop.team"]
