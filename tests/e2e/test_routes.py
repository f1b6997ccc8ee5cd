"""Routes and APIs with a real function on a real server."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

CODE = """import json
def handler(event, context):
    return {"statusCode": 200, "body": json.dumps([event["routeKey"], event["rawPath"], event.get("pathParameters")])}
"""


def test_a_pushed_functions_routes_serve_and_go_back_and_an_apis_host_is_its_own(
    server: RunningServer, folder: Path
) -> None:
    server.push_code(folder, "routed", CODE, '[[route]]\npath = "/routed/{id}"\nmethods = ["GET"]\n')
    assert server.get("/routed/7").json() == ["GET /routed/{id}", "/routed/7", {"id": "7"}]
    server.push_code(folder, "routed", CODE, '[[route]]\npath = "/rerouted/{id}"\nrewrite = "/{id}"\n')
    assert server.get("/routed/7").status == 404
    assert server.get("/rerouted/7").json() == ["ANY /rerouted/{id}", "/7", {"id": "7"}]
    server.faas("rollback", "routed")
    assert (server.get("/routed/7").status, server.get("/rerouted/7").status) == (200, 404)

    connection = HTTPConnection(server.public.removeprefix("http://"), timeout=20)
    try:

        def status() -> int:
            """Each time the same bytes on the same connection."""
            connection.request("GET", "/function/routed", headers={"Host": "routed.example.com"})
            response = connection.getresponse()
            response.read()
            return response.status

        assert [status(), status()] == [200, 200]
        server.faas("api", "put", "routed", "--host", "routed.example.com")
        assert status() == 404  # from here on the host's paths are the API's
        server.faas("route", "add", "/function/{name}", "routed", "--api", "routed")
        assert status() == 200
        document = json.loads(server.faas("api", "export", "routed").stdout)
        assert document["paths"].keys() == {"/function/{name}"}
    finally:
        connection.close()
        server.faas("api", "rm", "routed", check=False)
        server.faas("rm", "routed", check=False)
