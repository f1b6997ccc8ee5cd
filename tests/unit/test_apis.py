"""APIs and routes on the public listener, with a whole gateway around a fake worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faas.errors import Conflict, SpecError
from faas.leases import HttpRequest, HttpResponse, InvocationResult
from faas.protocol import CheckReport, Revision
from faas.spec import Interface
from faas.state.session import Database
from gateway.edge.apis.api import parse
from gateway.edge.apis.apis import Apis
from tests.support.control import DIGEST, Answered, Control, control, until
from tests.support.fake_worker import FakeWorker, body_size, stream


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        yield running


async def get(server: Control, path: str, host: str = "", method: str = "GET", **headers: str) -> Answered:
    sent = {**headers, **({"Host": host} if host else {})}
    return await server.call(method, path, public=True, headers=sent)


async def put(server: Control, name: str, status: int = 201, **api: Any) -> Any:
    answered = await server.call("PUT", f"/v1/apis/{name}", api)
    assert answered.status == status, answered.body
    return answered.json()


async def refused(server: Control, name: str, namespace: str = "", **spec: Any) -> str:
    """Why a deploy is refused with 409."""
    path, repository = (f"{name}.{namespace}", f"{namespace}/{name}") if namespace else (name, name)
    body = {"spec": {"name": name, **spec}, "image": f"{repository}@{DIGEST}"}
    answered = await server.call("PUT", f"/v1/functions/{path}", body)
    assert answered.status == 409, answered.body
    return str(answered.json()["error"]["message"])


def http(worker: FakeWorker) -> list[HttpRequest]:
    """Functions are http ones, and answer how they were asked."""
    asked: list[HttpRequest] = []

    async def answer(revision: Revision, request: HttpRequest) -> HttpResponse:
        asked.append(request)
        size = await body_size(request)
        body = f"{revision.key.function} v{revision.key.number} {request.method} {request.target} {size}".encode()
        return HttpResponse(200, (("X-Old", "1"), ("Content-Length", str(len(body)))), stream(body))

    worker.on_request, worker.found = answer, Interface.HTTP
    return asked


async def test_a_functions_route_leads_to_it_with_its_parameters(server: Control) -> None:
    await server.deploy("users", route=[{"path": "/users/{id}", "methods": ["GET"]}, {"path": "/files/{path+}"}])
    answered = await get(server, "/users/J%C3%BCrgen?x=1")
    event = answered.json()
    assert answered.status == 200
    assert (event["routeKey"], event["rawPath"], event["rawQueryString"]) == (
        "GET /users/{id}", "/users/J%C3%BCrgen", "x=1",
    )  # fmt: skip
    assert event["pathParameters"] == {"id": "Jürgen"}
    assert (await get(server, "/files/a/b", method="PUT")).json()["pathParameters"] == {"path": "a/b"}


async def test_a_path_with_other_methods_is_405_with_allow_and_another_one_404(server: Control) -> None:
    await server.deploy("users", route=[{"path": "/users/{id}", "methods": ["GET", "DELETE"]}])
    answered = await get(server, "/users/7", method="POST")
    assert (answered.status, answered.headers["Allow"]) == (405, "DELETE,GET,HEAD")
    missing = await get(server, "/user/7")
    assert (missing.status, missing.json()["error"]["message"]) == (404, "there is nothing here")
    assert (await get(server, "/users/7", method="HEAD")).status == 200


SPELLINGS = {
    "/admin": 401, "/admin/": 401, "/%61dmin": 401, "/%61%64min/": 401, "/admin?x": 401, "//admin": 400,
    "/x/../admin": 400, "/./admin": 400, "/%2e/admin": 400, "/admin%2f": 400, "/admin%2F..": 400, "/admin%5c": 400,
    "/admin%00": 400, "/%c0%afadmin": 400, "/admin//": 400, "/ADMIN": 200, "/open": 200,
}  # fmt: skip


async def test_no_spelling_of_a_path_goes_around_a_routes_protection(server: Control) -> None:
    await server.deploy("app", route=[{"path": "/admin", "public": False}, {"path": "/{proxy+}"}, {"path": "$default"}])
    for method in ("GET", "POST", "HEAD"):
        assert {path: (await get(server, path, method=method)).status for path in SPELLINGS} == SPELLINGS


async def test_a_route_opens_a_closed_function_only_by_its_own_word(server: Control) -> None:
    await server.deploy(
        "closed", public=False,
        route=[{"path": "/closed"}, {"path": "/open", "public": True}, {"path": "/login", "auth": {"token": True}}],
    )  # fmt: skip
    await server.deploy("open", route=[{"path": "/private", "public": False}, {"path": "/public"}])
    found = {path: (await get(server, path)).status for path in ("/closed", "/open", "/login", "/private", "/public")}
    assert found == {"/closed": 401, "/open": 200, "/login": 401, "/private": 401, "/public": 200}
    token = await server.a_token("caller")
    for path in ("/closed", "/login", "/private"):
        assert (await server.call("GET", path, token=token, public=True)).status == 200


async def test_a_route_that_is_not_public_is_not_opened_by_its_stage(server: Control) -> None:
    await server.deploy("hello", public=False)
    await put(
        server, "more", base_path="/more", stages={"$default": {"auth": {"public": True}}},
        routes=[{"path": "/closed", "function": "hello", "public": False}, {"path": "/open", "function": "hello"}],
    )  # fmt: skip
    assert [(await get(server, path)).status for path in ("/more/closed", "/more/open")] == [401, 200]


async def test_a_route_does_not_loosen_what_its_function_asks(server: Control) -> None:
    await server.deploy("keyed", public=False, auth={"token": True}, route=[{"path": "/k"}])
    await put(server, "more", base_path="/more", routes=[
        {"path": "/k", "function": "keyed"}, {"path": "/open", "function": "keyed", "public": True},
    ])  # fmt: skip
    assert [(await get(server, path)).status for path in ("/k", "/more/k", "/more/open")] == [401, 401, 200]


async def test_the_listeners_own_paths_stay_its_own(server: Control) -> None:
    await server.deploy("hello", route=[{"path": "/{all+}"}, {"path": "$default"}])
    assert (await get(server, "/function/hello/users/7")).json()["rawPath"] == "/users/7"
    assert (await get(server, "/async-function/hello", method="POST")).status == 202
    for path in ("/function", "/function/nobody", "/%66unction/hello", "/async-function/", "/%77s/x"):
        assert (await get(server, path)).status == 404, path
    for wrong in ({"path": "/function/x"}, {"path": "/async-function"}, {"path": "/ws/chat"}):
        body = {"spec": {"name": "x", "route": [wrong]}, "image": f"x@{DIGEST}"}
        assert "the listener's own" in (await server.call("PUT", "/v1/functions/x", body)).body.decode()
    answered = await server.call("PUT", "/v1/apis/x", {"base_path": "/function"})
    assert (answered.status, "the listener's own" in answered.body.decode()) == (400, True)
    assert (await server.call("GET", "/hello")).status == 404  # nor are routes on the API listener


async def test_an_api_has_hosts_a_base_path_and_stages(server: Control) -> None:
    called: list[int] = []

    async def echo(revision: Revision, event: bytes) -> InvocationResult:
        called.append(revision.key.number)
        return InvocationResult(event)

    server.worker.on_invoke = echo
    await server.deploy("users")
    await server.deploy("users", memory=256)
    await server.call("PUT", "/v1/functions/users/aliases/next", {"revision": 1})
    found = await put(
        server, "shop", hosts=["shop.example.com", "*.shop.example.com"], base_path="/v1",
        stages={"$default": {"variables": {"alias": "live"}}, "test": {"variables": {"alias": "next"}}},
        routes=[{"path": "/users/{id}", "function": "users:${stageVariables.alias}", "methods": ["GET"]}],
    )  # fmt: skip
    assert found["urls"][:2] == ["http://shop.example.com:8080/v1", "http://shop.example.com:8080/v1/test"]
    event = (await get(server, "/v1/users/7", "Shop.example.com:8080")).json()
    assert (event["requestContext"]["stage"], event["rawPath"]) == ("$default", "/v1/users/7")
    event = (await get(server, "/v1/test/users/7", "eu.shop.example.com")).json()
    assert (event["requestContext"]["stage"], event["stageVariables"]) == ("test", {"alias": "next"})
    assert called == [2, 1]
    for path, host in (
        ("/users/7", "shop.example.com"), ("/v1/prod/users/7", "shop.example.com"), ("/v1/users/7", ""),
        ("/v1/users/7", "a.b.shop.example.com"), ("/function/users", "shop.example.com"),
    ):  # fmt: skip
        assert (await get(server, path, host)).status == 404, (path, host)


async def test_hosts_come_before_base_paths_and_the_longest_base_path_wins(server: Control) -> None:
    asked = http(server.worker)
    for name in ("root", "short", "long", "exact", "wild"):
        await server.deploy(name)
    await server.deploy("root", route=[{"path": "$default"}])
    await put(server, "short", base_path="/shop", routes=[{"path": "$default", "function": "short"}])
    await put(server, "long", base_path="/shop/eu", routes=[{"path": "/{x+}", "function": "long"}])
    await put(server, "wild", hosts=["*.example.com"], routes=[{"path": "$default", "function": "wild"}])
    await put(server, "exact", hosts=["a.example.com"], routes=[{"path": "$default", "function": "exact"}])
    where = {
        ("/x", ""): "root", ("/shop", ""): "short", ("/shops", ""): "root", ("/shop/us/1", ""): "short",
        ("/shop/eu/1", ""): "long", ("/%73hop/eu/1", ""): "long", ("/shop/eu/1", "a.example.com"): "exact",
        ("/shop/eu/1", "b.example.com"): "wild", ("/x", "b.example.com."): "wild", ("/x", "example.com"): "root",
    }  # fmt: skip
    for (path, host), name in where.items():
        assert (await get(server, path, host)).body.split()[0].decode() == name, (path, host)
    assert (await get(server, "/shop/eu")).status == 404  # of `long`, which takes one segment at least
    assert asked[0].target == "/x"


async def test_a_route_rewrites_the_path_and_changes_header_fields(server: Control) -> None:
    asked = http(server.worker)
    await server.deploy("app", route=[{
        "path": "/files/{owner}/{path+}", "rewrite": "/internal/{path+}",
        "request_headers": {"set": {"X-Tier": "gold"}, "add": {"X-More": "2"}, "remove": ["Cookie"]},
        "response_headers": {"set": {"X-Served-By": "faas"}, "remove": ["X-Old"]},
    }])  # fmt: skip
    answered = await get(server, "/files/me/a%20b/c/?q=%2F", **{"Cookie": "a=b", "X-Tier": "mine", "X-More": "1"})
    assert answered.body.decode().split()[3] == "/internal/a%20b/c/?q=%2F"
    assert (answered.headers["X-Served-By"], "X-Old" in answered.headers) == ("faas", False)
    fields = asked[0].headers
    assert [value for name, value in fields if name == "x-tier"] == ["gold"]
    assert [value for name, value in fields if name == "x-more"] == ["1", "2"]
    assert not [value for name, value in fields if name == "cookie"]
    await server.deploy("app", route=[{"path": "/x", "public": False, "response_headers": {"add": {"X-A": "1"}}}])
    closed = await get(server, "/x")  # whoever answers
    assert (closed.status, closed.headers["X-A"]) == (401, "1")


async def test_an_answer_that_takes_longer_than_the_route_allows_is_504(server: Control) -> None:
    ended: list[str] = []

    async def slow(revision: Revision, event: bytes) -> InvocationResult:
        await asyncio.sleep(0.3)
        ended.append("whole")
        return InvocationResult(b"{}")

    server.worker.on_invoke = slow
    await server.deploy("slow", route=[{"path": "/quick", "timeout": "50ms"}, {"path": "/patient", "timeout": "20s"}])
    answered = await get(server, "/quick")
    assert (answered.status, answered.headers["X-Error-Type"]) == (504, "Route.Timedout")
    assert (await get(server, "/patient")).status == 200
    assert ended == ["whole", "whole"]  # as behind API Gateway, what runs goes on


async def test_an_http_functions_request_ends_with_the_routes_time_and_a_begun_answer_is_cut(server: Control) -> None:
    ended: list[str] = []

    async def halves() -> AsyncIterator[bytes]:
        try:
            yield b"half"
            await asyncio.sleep(20)
        finally:
            ended.append("body")

    async def answer(revision: Revision, request: HttpRequest) -> HttpResponse:
        if request.target == "/never":
            try:
                await asyncio.sleep(20)
            finally:
                ended.append("never")
        return HttpResponse(200, (), halves())

    server.worker.on_request, server.worker.found = answer, Interface.HTTP
    await server.deploy("slow", route=[{"path": "/{x}", "timeout": "100ms"}])
    assert (await get(server, "/never")).status == 504
    with pytest.raises(Exception, match=r"payload|closed|complete|disconnected"):
        await get(server, "/begun")
    assert ended == ["never", "body"]


@pytest.mark.parametrize("interface", [Interface.LAMBDA, Interface.HTTP])
async def test_a_body_above_the_routes_limit_is_413_announced_or_not(server: Control, interface: Interface) -> None:
    if interface is Interface.HTTP:
        http(server.worker)
    await server.deploy("app", route=[{"path": "/up", "body_limit": 10}])

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 5):
            yield b"x" * 5

    for body, status in ((b"x" * 10, 200), (b"x" * 11, 413)):
        assert (await server.call("POST", "/up", body, public=True)).status == status
    for size, status in ((10, 200), (15, 413)):
        async with server.session.post(server.public_url + "/up", data=pieces(size)) as response:
            assert response.status == status


async def test_a_route_that_is_taken_refuses_the_deploy_and_names_both(server: Control) -> None:
    await server.deploy("users", route=[{"path": "/users/{id}", "methods": ["GET"]}, {"path": "/a", "host": "a.b.cc"}])
    message = await refused(server, "other", route=[{"path": "/users/{uid}/", "methods": ["PUT", "GET"]}])
    assert "the function users has it" in message
    assert "the function other wants" in message
    assert (await server.call("GET", "/v1/functions/other")).status == 404
    assert server.worker.prepared == [key for key in server.worker.prepared if key.function == "users"]
    for wrong in ({"path": "/%75sers/{x}", "methods": ["GET"]}, {"path": "/a", "host": "a.b.cc"}):
        await refused(server, "other", route=[wrong])
    for fine in ({"path": "/users/{uid}"}, {"path": "/users/{x+}"}, {"path": "/a"}, {"path": "/a", "host": "*.b.cc"}):
        await server.deploy("other", route=[fine])


async def test_apis_and_functions_do_not_take_or_hide_what_the_other_has(server: Control) -> None:
    await server.deploy("users", route=[{"path": "/users/{id}"}, {"path": "/x", "host": "h.example.com"}])

    async def conflict(name: str, **api: Any) -> str:
        answered = await server.call("PUT", f"/v1/apis/{name}", api)
        assert answered.status == 409, answered.body
        return str(answered.json()["error"]["message"])

    taken = await conflict("default", routes=[{"path": "/users/{x}", "function": "users"}])
    assert "the function users has it" in taken
    assert "would hide ANY /users/{id}" in await conflict("shop", base_path="/users")
    assert "would hide" in await conflict("default", stages={"$default": {}, "users": {}})
    assert "the API default's" in await conflict("shop", hosts=["h.example.com"])
    await put(server, "shop", base_path="/shop", stages={"$default": {}, "test": {}})
    assert "would be hidden by" in await refused(server, "other", route=[{"path": "/shop/{x}"}])
    assert "is the API shop's" in await conflict("more", base_path="/shop")
    assert "is the API shop's" in await conflict("more", base_path="/shop/test")
    await server.deploy("other", route=[{"path": "/{x}/test"}])  # not hidden: elsewhere it is reached
    own = await conflict("own", base_path="/own", stages={"$default": {}, "a": {}},
                         routes=[{"path": "/a", "function": "users"}])  # fmt: skip
    assert "would hide ANY /a" in own
    assert (await server.call("GET", "/v1/apis/own")).status == 404


async def test_what_a_deploy_is_about_to_take_is_taken_meanwhile(server: Control) -> None:
    go_on, check = asyncio.Event(), server.worker.check

    async def held(revision: Revision) -> CheckReport:
        report = await check(revision)
        await go_on.wait()
        return report

    server.worker.check = held  # type: ignore[method-assign]
    deploying = asyncio.create_task(server.deploy("slow", route=[{"path": "/taken"}]))
    await until(lambda: server.worker.checked)
    answered = await server.call("PUT", "/v1/apis/default", {"routes": [{"path": "/taken", "function": "slow"}]})
    assert "the function slow has it" in answered.json()["error"]["message"]
    assert (await get(server, "/taken")).status == 404  # not yet
    go_on.set()
    await deploying
    assert (await get(server, "/taken")).status == 200
    server.worker.fails = "broken"
    failed = {"spec": {"name": "other", "route": [{"path": "/other"}]}, "image": f"other@{DIGEST}"}
    assert (await server.call("PUT", "/v1/functions/other", failed)).status == 502
    server.worker.fails = ""
    await put(server, "default", 200, routes=[{"path": "/other", "function": "slow"}])  # given back


async def test_namespaces_have_their_own_places_and_no_others_hosts(server: Control) -> None:
    asked = http(server.worker)
    await server.deploy("hello", namespace="team", route=[{"path": "/x"}, {"path": "/h", "host": "t.example.com"}])
    await server.deploy("hello", route=[{"path": "/x"}])
    await put(server, "shop.team", base_path="/shop", routes=[{"path": "/x", "function": "hello"}])
    for path in ("/team/x", "/x", "/team/shop/x"):
        assert (await get(server, path)).status == 200
    assert len(asked) == 3
    assert "t.example.com" in await refused(server, "other", route=[{"path": "/y", "host": "*.example.com"}])
    for name, host, status in (
        ("a", "t.example.com", 409), ("a", "*.example.com", 409), ("a.team", "*.example.com", 201),
        ("b", "u.example.com", 409), ("b", "u.example.org", 201),
    ):  # fmt: skip
        await put(server, name, status, hosts=[host])
    assert "would be hidden" in await refused(server, "other", route=[{"path": "/team/{x}"}])
    team = await server.a_token("deployer", "team")
    for verb, path, body, status in (
        ("GET", "/v1/apis/b", None, 403), ("PUT", "/v1/apis/b", {"hosts": ["c.example.org"]}, 403),
        ("PUT", "/v1/apis/b.team", {"base_path": "/b"}, 201), ("DELETE", "/v1/apis/b", None, 403),
        ("POST", "/v1/apis/default/routes", {"path": "/z", "function": "hello"}, 403),
        ("GET", "/v1/routes?namespace=default", None, 403),
    ):  # fmt: skip
        assert (await server.call(verb, path, body, token=team)).status == status, (verb, path)
    seen = (await server.call("GET", "/v1/routes", token=team)).json()["routes"]
    assert {route["namespace"] for route in seen} == {"team"}
    apis = (await server.call("GET", "/v1/apis", token=team)).json()["apis"]
    assert [api["name"] for api in apis] == ["a", "b", "default", "shop"]
    assert apis[2]["urls"] == ["http://127.0.0.1:8080/team"]


async def test_a_deploy_and_a_rollback_move_routes_with_live_and_a_delete_takes_them(server: Control) -> None:
    await server.deploy("app", route=[{"path": "/one"}, {"path": "/both"}])
    await server.deploy("app", route=[{"path": "/two"}, {"path": "/both"}])

    async def found() -> list[int]:
        return [(await get(server, path)).status for path in ("/one", "/two", "/both")]

    assert await found() == [404, 200, 200]
    assert (await server.call("POST", "/v1/functions/app/rollback", {})).status == 200
    assert await found() == [200, 404, 200]
    await put(server, "default", 200, routes=[{"path": "/two", "function": "app"}])
    answered = await server.call("POST", "/v1/functions/app/rollback", {"to": 2})
    assert (answered.status, "the API default has it" in answered.body.decode()) == (409, True)
    assert await found() == [200, 200, 200]
    assert (await server.call("DELETE", "/v1/functions/app")).status == 204
    assert await found() == [404, 404, 404]
    await server.deploy("other", route=[{"path": "/one"}])


async def test_everything_is_where_it_was_after_a_restart(tmp_path: Path) -> None:
    async with control(tmp_path) as server:
        await server.deploy("app", route=[{"path": "/mine"}])
        stages: dict[str, Any] = {"$default": {}, "test": {"variables": {"a": "b"}}}
        routes = [{"path": "/{x}", "function": "app", "methods": ["GET"], "timeout": "2s"}]
        await put(server, "shop", hosts=["shop.example.com"], stages=stages, routes=routes)
        added = await server.call("POST", "/v1/apis/default/routes", {"path": "/more", "function": "app"})
        assert added.status == 201
        await put(server, "gone", base_path="/gone")
        assert (await server.call("DELETE", "/v1/apis/gone")).status == 204
        before = [(await server.call("GET", path)).body for path in ("/v1/apis", "/v1/apis/shop", "/v1/routes")]
    async with control(tmp_path) as server:
        assert [(await server.call("GET", path)).body for path in ("/v1/apis", "/v1/apis/shop", "/v1/routes")] == before
        assert (await get(server, "/mine")).status == (await get(server, "/more")).status == 200
        assert (await get(server, "/test/x", "shop.example.com")).json()["stageVariables"] == {"a": "b"}
        route = added.json()["id"]
        assert (await server.call("DELETE", f"/v1/apis/default/routes/{route}")).status == 204
        assert (await get(server, "/more")).status == 404
        assert (await server.call("DELETE", "/v1/apis/default")).status == 204
        assert (await get(server, "/mine")).status == 200


async def test_a_route_to_a_function_that_is_not_there_is_told_and_answers_404(server: Control) -> None:
    found = await put(server, "shop", base_path="/shop", routes=[{"path": "/x", "function": "later"}])
    assert found["warnings"] == ["later is not deployed; its routes answer 404 until it is"]
    assert (await get(server, "/shop/x")).status == 404
    await server.deploy("later")
    assert (await get(server, "/shop/x")).status == 200


async def test_format_1_has_an_apis_base_path_and_not_its_stage(server: Control) -> None:
    heard: list[Any] = []

    async def listen(revision: Revision, event: bytes) -> InvocationResult:
        heard.append(json.loads(event))
        return InvocationResult(b'{"statusCode": 200}')

    server.worker.on_invoke = listen
    await server.deploy("users", payload="1.0")
    routes = [{"path": "/users/{id}", "function": "users"}]
    routes.append({"path": "/old", "function": "users", "rewrite": "/test/new"})
    await put(server, "shop", base_path="/v1/shop", stages={"$default": {}, "test": {}}, routes=routes)
    for asked, path in (
        ("/v1/shop/test/users/7", "/v1/shop/users/7"), ("/v1/shop/%74est/users/7", "/v1/shop/users/7"),
        ("/v1/shop/users/test", "/v1/shop/users/test"), ("/v1/shop/test/old", "/test/new"),
    ):  # fmt: skip
        assert (await get(server, asked)).status == 200
        assert (heard[-1]["version"], heard[-1]["path"]) == ("1.0", path)


async def test_a_stages_rules_hold_where_its_routes_say_nothing(server: Control) -> None:
    await server.deploy("hello")
    await put(
        server, "shop", base_path="/shop", stages={"$default": {}, "inner": {"auth": {"token": True}}},
        routes=[{"path": "/x", "function": "hello"}, {"path": "/y", "function": "hello", "public": True}],
    )  # fmt: skip
    found = [(await get(server, path)).status for path in ("/shop/x", "/shop/inner/x", "/shop/inner/y")]
    assert found == [200, 401, 200]


async def test_a_preflight_is_answered_where_the_asked_methods_route_is(server: Control) -> None:
    await server.deploy("hello", route=[
        {"path": "/pets", "methods": ["GET"], "cors": {"origins": ["https://a.example"]}}, {"path": "$default"},
    ])  # fmt: skip
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    answered = await get(server, "/pets", method="OPTIONS", **asks)
    assert answered.headers["Access-Control-Allow-Origin"] == "https://a.example"
    asks["Access-Control-Request-Method"] = "PUT"  # $default's, which says nothing of other pages
    answered = await get(server, "/pets", method="OPTIONS", **asks)
    assert (answered.status, "Access-Control-Allow-Origin" in answered.headers) == (200, False)


@pytest.mark.parametrize(
    ("api", "words"),
    [
        ({}, "needs hosts or a base_path"),
        ({"hosts": ["a"]}, 'hosts must be a host name such as "api.example.com"'),
        ({"hosts": ["127.0.0.1"]}, "hosts must be"),
        ({"hosts": ["a.example.com:80"]}, "without a port"),
        ({"hosts": ["*.*.example.com"]}, "hosts must be"),
        ({"base_path": "/a/{b}"}, "base_path must be a path without parameters"),
        ({"base_path": "/a/../b"}, "base_path must be"),
        ({"base_path": "/a", "stages": {}}, "stages must be a table of 1 to"),
        ({"base_path": "/a", "stages": {"a b": {}}}, "is no stage"),
        ({"base_path": "/a", "stages": {"a": {"variables": {"x": 1}}}}, "stages.a.variables must be"),
        ({"base_path": "/a", "stages": {"a": {"wrong": 1}}}, "unknown key stages.a.wrong"),
        ({"base_path": "/a", "routes": [{"path": "/x"}]}, "routes[0] needs function"),
        ({"base_path": "/a", "routes": [{"function": "x"}]}, "routes[0] needs path"),
        ({"base_path": "/a", "routes": [{"path": "/x", "function": "team/x"}]}, "routes[0].function must be"),
        ({"base_path": "/a", "routes": [{"path": "/x", "function": "x.team"}]}, "routes[0].function must be"),
        ({"base_path": "/a", "routes": [{"path": "/x", "function": "x", "host": "a.b.cc"}]}, "drop host"),
        ({"base_path": "/a", "routes": [{"path": "/x", "function": "x", "colour": "red"}]}, "unknown key"),
        ({"base_path": "/a", "routes": [{"path": "/x", "function": "x:${stageVariables.v}"}]}, "has no variable v"),
        ({"base_path": "/a", "routes": [{"path": "/{a}", "function": "x"}, {"path": "/{b}", "function": "y"}]},
         "takes what ANY /{a} takes already"),
        ({"base_path": "/a", "paths": {}}, "unknown key paths"),
    ],
)  # fmt: skip
def test_an_api_that_cannot_be_is_refused_with_what_is_wrong(api: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse("default", "shop", api)
    assert words in caught.value.message + caught.value.hint


async def test_hosts_of_the_server_itself_are_not_given_away(tmp_path: Path) -> None:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    try:
        apis = Apis(database, taken=("faas.example.com", "127.0.0.1"), domain="fn.example.org")
        for host in ("faas.example.com", "*.example.com", "a.fn.example.org", "*.fn.example.org", "fn.example.org"):
            with pytest.raises(Conflict, match="the host"):
                await apis.put(parse("default", "x", {"hosts": [host]}))
        assert await apis.put(parse("default", "x", {"hosts": ["api.example.com"]}))
        nameless = Apis(database, taken=("127.0.0.1",), named=False)
        with pytest.raises(Conflict, match="not known"):
            await nameless.put(parse("default", "y", {"hosts": ["api.example.org"]}))
        assert await nameless.put(parse("default", "y", {"base_path": "/y"}))
        await nameless.close(1)
    finally:
        await apis.close(1)
        await database.close()


async def test_a_namespaces_apis_get_half_of_what_others_leave(
    server: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.edge.apis.apis.MOST_BYTES", 4000)
    long = [{"path": f"/{'x' * 60}{n}", "function": "app"} for n in range(10)]

    async def status(name: str, routes: Any) -> tuple[int, bytes]:
        answered = await server.call("PUT", f"/v1/apis/{name}", {"base_path": f"/{name}", "routes": routes})
        return answered.status, answered.body

    assert (await status("one", long))[0] == 201
    refused = await status("two", long)
    assert refused[0] == 409
    assert b"the namespace default would have" in refused[1]
    assert b"it gets 2000 of the server's 4000" in refused[1]
    assert (await status("three.team", long[:5]))[0] == 201, "others find room"
    assert (await status("one", long[:9]))[0] == 200, "what makes it smaller is taken"
    assert (await server.call("DELETE", "/v1/apis/one")).status == 204
    assert (await status("two", long))[0] == 201


def test_hosts_stages_and_routes_multiply_only_so_far() -> None:
    deep = "/".join("abcdefghijklmnopqrstuvwxyzabcde")
    api: dict[str, Any] = {
        "hosts": [f"h{number}.example.com" for number in range(32)],
        "stages": {"$default": {}, **{f"s{number}": {} for number in range(31)}},
        "routes": [{"path": f"/r{number}/{deep}", "function": "f"} for number in range(4)],
    }
    with pytest.raises(SpecError) as caught:
        parse("default", "x", api)
    assert (caught.value.key, "at most 100000" in caught.value.message) == ("routes", True)
    assert len(parse("default", "x", {**api, "stages": {"$default": {}}}).routes) == 4


async def test_who_has_a_host_is_told_to_nobody_of_another_namespace(server: Control) -> None:
    await put(server, "secret.team", hosts=["a.example.com"])
    await server.deploy("hidden", namespace="team", route=[{"path": "/x", "host": "b.example.com"}])
    for host in ("a.example.com", "b.example.com", "*.example.com"):
        answered = await server.call("PUT", "/v1/apis/mine", {"hosts": [host]})
        words = answered.body.decode()
        assert answered.status == 409, words
        assert "another namespace has it" in words
        assert not any(name in words for name in ("secret", "hidden", "team")), words
