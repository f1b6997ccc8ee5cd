"""OpenAPI documents of APIs, out and in."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faas.errors import InvalidInput, SpecError
from faas.leases import InvocationResult
from faas.protocol import Revision
from faas.rules.auth import LOGIN
from gateway.edge.apis.api import Api, parse
from gateway.edge.apis.exported import document
from gateway.edge.apis.imported import Imported, imported
from tests.support.control import Control, control

URI = "arn:aws:apigateway:eu-west-1:lambda:path/2015-03-31/functions/arn:aws:lambda:eu-west-1:123456789012:function:"
WRITTEN: dict[str, Any] = {
    "openapi": "3.0.1",
    "info": {"title": "pets", "version": "2024-01-01"},
    "servers": [{"url": "https://abc.execute-api.eu-west-1.amazonaws.com"}],
    "tags": [{"name": "pets"}],
    "paths": {
        "/pets/{id}": {
            "get": {
                "operationId": "getPet",
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {"200": {"description": "a pet"}},
                "security": [{"login": []}],
                "x-amazon-apigateway-integration": {
                    "type": "aws_proxy", "httpMethod": "POST", "payloadFormatVersion": "1.0", "timeoutInMillis": 2000,
                    "uri": URI + "pets:prod/invocations", "connectionType": "INTERNET",
                },
            },
            "parameters": [{"$ref": "#/components/parameters/verbose"}],
        },
        "/pets": {"post": {"requestBody": {"content": {}}, "responses": {}, "x-faas-function": "pets",
                           "x-faas-route": {"body_limit": 100, "cors": {"origins": ["*"]}}}},
        "/files/{proxy+}": {
            "x-amazon-apigateway-any-method": {
                "parameters": [{"name": "proxy+", "in": "path", "required": True, "schema": {"type": "string"}}],
                "x-amazon-apigateway-integration": {"$ref": "#/components/x-amazon-apigateway-integrations/files"},
                "x-vendor": 1,
            }
        },
        "/$default": {"x-amazon-apigateway-any-method": {"isDefaultRoute": True, "x-faas-function": "rest"}},
    },
    "components": {
        "parameters": {"verbose": {"name": "verbose", "in": "query", "schema": {"type": "boolean"}}},
        "securitySchemes": {"login": {"type": "http", "scheme": "bearer"}},
        "x-amazon-apigateway-integrations": {
            "files": {"type": "AWS_PROXY", "uri": "arn:aws:lambda:eu-west-1:1:function:files"}
        },
    },
    "x-amazon-apigateway-importexport-version": "1.0",
    "x-faas-api": {"hosts": ["pets.example.com"], "stages": {"$default": {}, "test": {"variables": {"a": "b"}}}},
}  # fmt: skip


def read(value: dict[str, Any]) -> tuple[Api, Imported]:
    found = imported(value)
    return parse("default", "pets", found.data), found


def exported(api: Api) -> dict[str, Any]:
    return document(api, [], lambda route: LOGIN, ["http://pets.example.com"], "1")


def test_a_document_of_api_gateway_becomes_routes_and_what_is_left_out_is_told() -> None:
    api, found = read(WRITTEN)
    assert [route.to_dict() for route in api.routes] == [
        {"path": "/pets/{id}", "methods": ["GET"], "timeout": "2s", "public": False, "payload": "1.0",
         "function": "pets:prod"},
        {"path": "/pets", "methods": ["POST"], "body_limit": 100, "function": "pets",
         "cors": api.routes[1].to_dict()["cors"]},
        {"path": "/files/{proxy+}", "function": "files"},
        {"path": "$default", "function": "rest"},
    ]  # fmt: skip
    assert (api.hosts, api.stages["test"].variables) == (("pets.example.com",), {"a": "b"})
    assert sorted(found.warnings) == [
        "/paths/~1files~1{proxy+}/x-amazon-apigateway-any-method/x-vendor: left out",
        "/paths/~1pets~1{id}/get/x-amazon-apigateway-integration/connectionType: left out",
        "/paths: parameters and bodies are described, and not checked",
        "/servers: hosts and base paths are the API's own, and not taken from here",
        "/x-amazon-apigateway-importexport-version: left out",
    ]


def test_import_export_import_gives_the_same_and_so_does_a_second_export() -> None:
    first, _ = read(WRITTEN)
    out = exported(first)
    second, found = read(out)
    assert second == first
    assert exported(second) == out
    assert found.warnings == ["/servers: hosts and base paths are the API's own, and not taken from here"]


def test_an_exported_document_is_one_of_openapi() -> None:
    """Structure by the OpenAPI Specification 3.1.1, §4.8: what is required is there, and refers to what is there."""
    out = exported(read(WRITTEN)[0])
    assert out["openapi"].startswith("3.1.")
    assert {"title", "version"} <= out["info"].keys()
    ids = []
    for path, item in out["paths"].items():
        assert path.startswith("/")
        for key, operation in item.items():
            assert key in ("get", "post", "x-amazon-apigateway-any-method")
            ids.append(operation["operationId"])
            names = {one["name"] for one in operation["parameters"] if one["in"] == "path" and one["required"]}
            assert names == {part[1:-1] for part in path.split("/") if part.startswith("{")}
            assert operation["responses"]["default"]["description"]
            for requirement in operation["security"]:
                assert requirement.keys() <= out["components"]["securitySchemes"].keys()
    assert len(ids) == len(set(ids)) == 4


def changed(*path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(WRITTEN)
    at = made
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return made


_GET = ("paths", "/pets/{id}", "get")
_INTEGRATION = (*_GET, "x-amazon-apigateway-integration")


def refusing(wrong: dict[str, Any]) -> None:
    found = imported(wrong)
    try:
        parse("default", "pets", found.data)
    except SpecError as error:
        raise found.refused(error) from None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (changed("openapi", value="2.0"), "/openapi: must be 3.0.x or 3.1.x"),
        (changed("swagger", value="2.0"), "/swagger: is not understood here"),
        (changed("webhooks", value={}), "/webhooks: is not understood here"),
        (changed("paths", value=[]), "/paths: must be an object"),
        (changed("paths", "/pets", value=1), "/paths/~1pets: must be an object"),
        (changed("paths", "/pets", "trace", value={}), "/paths/~1pets/trace: is no method of routes"),
        (changed("paths", "/pets", "$ref", value="#/x"), "/paths/~1pets/$ref: is not understood here"),
        (changed("paths", "/pets/..", value={"get": {"x-faas-function": "a"}}), "/paths/~1pets~1.. must be"),
        (changed(*_GET, "callbacks", value={}), "/paths/~1pets~1{id}/get/callbacks: is not understood here"),
        (changed(*_GET, "parameters", value={}), "/paths/~1pets~1{id}/get/parameters: must be a list"),
        (changed(*_GET, "parameters", value=[{"name": "x", "in": "path"}]), "get/parameters/0: 'x' is not in the path"),
        (changed(*_GET, "parameters", value=[{"$ref": "other.json"}]), "parameters/0/$ref: must lead into this"),
        (changed(*_INTEGRATION, value=None), "/paths/~1pets~1{id}/get: leads nowhere"),
        (changed(*_INTEGRATION, "type", value="http_proxy"), "/type: must be aws_proxy"),
        (changed(*_INTEGRATION, "uri", value="https://example.com"), "/uri: must name a function"),
        (changed(*_INTEGRATION, "requestParameters", value={}), "/requestParameters: is not offered here"),
        (changed(*_INTEGRATION, "timeoutInMillis", value="1"), "/timeoutInMillis: must be a whole number"),
        (changed(*_INTEGRATION, "timeoutInMillis", value=1), "get: routes[0].timeout must be a duration"),
        (changed(*_INTEGRATION, "payloadFormatVersion", value="3.0"), "/get: routes[0].payload must be"),
        (changed("components", "securitySchemes", "login", "type", value="oauth2"),
         "get/security/0/login: cannot be asked for by a document"),
        (changed("paths", "/pets", "post", "x-faas-route", "colour", value=1),
         "/paths/~1pets/post: unknown key routes[1].colour"),
        (changed("paths", "/pets/{name}", value={"get": {"x-faas-function": "a"}}),
         "/paths/~1pets~1{name}/get: routes[4]: GET /pets/{name} takes what GET /pets/{id} takes already"),
        (changed("x-faas-api", "colour", value=1), "/x-faas-api/colour: is none of base_path, hosts, stages"),
        (changed("x-faas-api", "hosts", value=["x"]), "/x-faas-api: hosts must be"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_its_pointer(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        refusing(wrong)
    assert words in caught.value.message


def test_a_document_that_is_too_deep_or_has_too_many_routes_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(InvalidInput, match="more than 64 levels"):
        imported({"openapi": "3.1.0", "paths": {}, "components": deep})
    many = {f"/r{n}": {"get": {"x-faas-function": "a"}} for n in range(2001)}
    with pytest.raises(InvalidInput, match="2000 routes"):
        imported({"openapi": "3.1.0", "paths": many})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    ["openapi", "paths", "/a/{b}", "get", "x-faas-function", "x-faas-route", "parameters", "security", "components",
     "x-amazon-apigateway-integration", "securitySchemes", "$ref", "x-faas-api", "x-amazon-apigateway-any-method"]
)  # fmt: skip


@given(
    st.recursive(_JSON, lambda children: st.dictionaries(_KEYS, children, max_size=4), max_leaves=20),
    st.dictionaries(_KEYS, _JSON, max_size=3),
)
def test_no_document_does_more_than_be_refused(paths: Any, more: dict[str, Any]) -> None:
    for value in ({**more, "openapi": "3.1.0", "paths": paths}, {"openapi": "3.1.0", "paths": {"/a/{b}": paths}}):
        try:
            parse("default", "x", {"base_path": "/x", **imported(value).data})
        except InvalidInput:
            continue


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Control]:
    async with control(tmp_path) as running:
        yield running


async def test_an_imported_api_serves_and_its_export_can_be_put_back(server: Control) -> None:

    async def answer(revision: Revision, event: bytes) -> InvocationResult:
        return InvocationResult(json.dumps({"statusCode": 200, "body": event.decode()}).encode())

    server.worker.on_invoke = answer
    await server.deploy("pets", route=[{"path": "/own"}])
    await server.call("PUT", "/v1/functions/pets/aliases/prod", {"revision": 1})
    answered = await server.call("PUT", "/v1/apis/pets/openapi.json", WRITTEN)
    assert answered.status == 201, answered.body
    assert "files is not deployed; its routes answer 404 until it is" in answered.json()["warnings"]
    token = await server.a_token("caller")
    called = await server.call("GET", "/test/pets/7", token=token, public=True, headers={"Host": "pets.example.com"})
    assert called.status == 200, called.body
    assert (called.json()["resource"], called.json()["pathParameters"]) == ("/pets/{id}", {"id": "7"})
    out = (await server.call("GET", "/v1/apis/pets/openapi.json")).json()
    assert out["paths"]["/pets"]["post"]["security"] == []  # the function is public
    assert out["paths"]["/pets/{id}"]["get"]["security"]
    before = (await server.call("GET", "/v1/apis/pets")).json()
    assert (await server.call("PUT", "/v1/apis/pets/openapi.json", out)).status == 200
    assert (await server.call("GET", "/v1/apis/pets")).json() == before
    assert (await server.call("PUT", "/v1/apis/copy/openapi.json", out)).status == 409  # its host is taken
    default = (await server.call("GET", "/v1/apis/default/openapi.json")).json()
    assert default["paths"]["/own"]["x-amazon-apigateway-any-method"]["x-faas-source"] == "function"
    again = await server.call("PUT", "/v1/apis/default/openapi.json", default)
    assert (again.status, again.json()["routes"]) == (200, [])  # its function's own route is left to it


async def test_a_refused_import_changes_nothing(server: Control) -> None:
    await server.call("PUT", "/v1/apis/pets/openapi.json", WRITTEN)
    before = (await server.call("GET", "/v1/apis/pets")).json()
    for body in (changed("webhooks", value={}), changed(*_INTEGRATION, "payloadFormatVersion", value="3.0")):
        answered = await server.call("PUT", "/v1/apis/pets/openapi.json", body)
        assert answered.status == 400
        assert answered.json()["error"]["message"].startswith("/")
    for raw in (b"openapi: 3.1.0", b"[]", b"{" * 100_000):
        assert (await server.call("PUT", "/v1/apis/pets/openapi.json", raw)).status == 400
    assert (await server.call("GET", "/v1/apis/pets")).json() == before
