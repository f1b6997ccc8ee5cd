"""Maintenance: 503 at once, in the client's form, durable, seen by the lane; an administrator comes through to look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.edge.entry import Target
from gateway.edge.maintenance import _wanted
from tests.support.control import Answered, Control, control

HELLO, ALL = "/v1/maintenance/hello", "/v1/maintenance/*"


async def call(server: Control, name: str = "hello", **headers: str) -> Answered:
    return await server.call("GET", f"/function/{name}", public=True, headers=headers)


async def test_a_function_under_maintenance_answers_503_with_its_message_and_its_neighbour_goes_on(
    tmp_path: Path,
) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        await server.deploy("other")
        begun = await server.call("PUT", HELLO, {"message": "back at noon <b>", "retry_after": 90})
        assert (begun.status, begun.json()["name"], begun.json()["all"]) == (201, "hello", False)
        answered = await call(server)
        assert answered.status == 503
        assert (answered.headers["Retry-After"], answered.headers["Reason"]) == ("90", "Maintenance")
        assert answered.headers["Cache-Control"] == "no-store"
        error = answered.json()["error"]
        assert (error["code"], error["message"]) == ("Maintenance", "back at noon <b>")
        assert error["request_id"] == answered.headers["X-Request-Id"]
        page = await call(server, Accept="text/html,application/xhtml+xml,*/*;q=0.8")
        assert page.headers["Content-Type"].startswith("text/html")
        assert b"back at noon &lt;b&gt;" in page.body
        assert (await call(server, Accept="text/plain")).body == b"back at noon <b>\n"
        assert (await call(server, "other")).status == 200
        assert (await server.call("POST", "/async-function/hello", public=True)).status == 503
        assert (await server.call("POST", "/function/hello")).status == 503
        assert (await server.call("DELETE", HELLO)).status == 204
        assert (await call(server)).status == 200
        assert (await server.call("DELETE", HELLO)).status == 404


async def test_all_functions_at_once_and_it_is_there_again_after_a_restart(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        assert (await server.call("PUT", ALL, b"{}")).status == 201
        assert (await server.call("PUT", HELLO, {"message": "its own words"})).status == 201
    async with control(tmp_path) as server:
        assert (await call(server)).json()["error"]["message"] == "its own words"
        listed = (await server.call("GET", "/v1/maintenance")).json()["maintenance"]
        assert [(row["name"], row["all"], row["retry_after"], row["by"]) for row in listed] == [
            ("*", True, 60, "admin"), ("hello", False, 60, "admin"),
        ]  # fmt: skip
        await server.call("DELETE", HELLO)
        assert (await call(server)).json()["error"]["message"].startswith("this is being worked on")
        await server.call("DELETE", ALL)
        assert (await call(server)).status == 200


async def test_an_administrator_comes_through_and_the_token_reaches_no_function(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        deployer = await server.a_token("deployer")
        await server.call("PUT", ALL, b"{}")
        through = await call(server, **{"X-Faas-Bypass": server.token, "Authorization": "the function's own"})
        assert through.status == 200
        seen = through.json()["headers"]
        assert seen["authorization"] == "the function's own"
        assert "x-faas-bypass" not in seen
        for token in (deployer, "wrong", "", "ä"):
            assert (await call(server, **{"X-Faas-Bypass": token})).status == 503


async def test_the_lane_is_told_what_is_covered_and_when_that_changes(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(namespace="team")
        maintenance, changes = server.gateway.edge.maintenance, []
        server.gateway.router.watch(lambda: changes.append(maintenance.covers("hello.team")))
        await server.call("PUT", "/v1/maintenance/hello.team", b"{}")
        assert (maintenance.covers("hello.team"), maintenance.covers("hello")) == (True, False)
        await server.call("DELETE", "/v1/maintenance/hello.team")
        await server.call("PUT", ALL, b"{}")
        assert maintenance.covers("hello")
        assert changes == [True, False, True]
        edge = server.gateway.edge
        passage = edge.passage(edge.doorman(server.gateway.tokens))
        entry = passage.function(Target("hello.team", "/", ""))
        assert not passage.plain(entry)
        await server.call("DELETE", ALL)
        assert passage.plain(entry)


async def test_who_may_change_a_function_may_close_it_and_everything_is_an_administrators(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy(namespace="team")
        tokens = {role: await server.a_token(role, "team") for role in ("viewer", "deployer", "admin")}
        for role, path, status in (
            ("viewer", "/v1/maintenance/hello.team", 403),
            ("deployer", "/v1/maintenance/hello.team", 201),
            ("deployer", "/v1/maintenance/hello", 403),
            ("deployer", ALL, 403),
            ("admin", ALL, 403),  # of one namespace
        ):
            assert (await server.call("PUT", path, b"{}", token=tokens[role])).status == status, (role, path)


@pytest.mark.parametrize(
    ("wish", "status", "words"),
    [
        ({"message": "two\nlines"}, 400, "one line of at most 500"),
        ({"message": "x" * 501}, 400, "one line of at most 500"),
        ({"retry_after": 0}, 400, "retry_after must be a whole number from 1 to 86400"),
        ({"retry": 1}, 400, "unknown key"),
    ],
)
async def test_what_says_nothing_clear_is_refused(
    tmp_path: Path, wish: dict[str, Any], status: int, words: str
) -> None:
    async with control(tmp_path) as server:
        await server.deploy()
        answered = await server.call("PUT", HELLO, wish)
        assert answered.status == status
        assert words in answered.json()["error"]["message"]
        assert (await server.call("PUT", "/v1/maintenance/helo", b"{}")).json()["error"][
            "hint"
        ] == "did you mean hello?"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html", "text/html"),
        ("application/json, text/html", "application/json"),
        ("text/plain;q=0.5, text/html;q=0.9", "text/html"),
        ("text/html;q=0, application/json;q=0.1", "application/json"),
        ("text/html;q=much", "application/json"),
        ("image/png", "application/json"),
    ],
)
def test_the_form_is_the_one_that_the_client_would_rather_have(accept: str, kind: str) -> None:
    assert _wanted(accept) == kind
