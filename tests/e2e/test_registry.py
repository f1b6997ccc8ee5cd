"""The registry inside the server: it knows what is deployed, and who may change what all functions stand on."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from faas.oci import media_types
from tests.support.server import Answer, RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

COLLECTED = {"tags", "manifests", "repositories", "blobs", "bytes", "files"}
HELLO = "def handler(event, context):\n    return {'statusCode': 200, 'body': 'hello'}\n"


def call(
    server: RunningServer, user: str, token: str, method: str, path: str, body: bytes | None = None, kind: str = ""
) -> Answer:
    """One request to the registry, with Basic credentials as docker sends them."""
    request = urllib.request.Request(f"{server.registry}{path}", data=body, method=method)
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode())
    if kind:
        request.add_header("Content-Type", kind)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            return Answer(reply.status, reply.headers, reply.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read())


def test_a_deployed_image_is_not_deleted_and_its_holder_is_named(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "held", HELLO)
    digest = server.get("/v1/functions/held", api=True).json()["image"].rpartition("@")[2]
    refused = call(server, "admin", server.token, "DELETE", f"/v2/held/manifests/{digest}")
    assert (refused.status, json.loads(refused.body)["errors"][0]["code"]) == (409, "DENIED")
    assert "held" in refused.text
    layer = json.loads(call(server, "admin", server.token, "GET", f"/v2/held/manifests/{digest}").body)["layers"][-1]
    assert call(server, "admin", server.token, "DELETE", f"/v2/held/blobs/{layer['digest']}").status == 405
    assert server.get("/function/held").text == "hello"
    server.faas("rm", "held", "--yes")
    assert call(server, "admin", server.token, "DELETE", f"/v2/held/manifests/{digest}").status == 202


def test_the_runtime_bases_are_everybodys_to_pull_and_the_administrators_to_change(
    server: RunningServer, tmp_path: Path
) -> None:
    server.push_code(tmp_path, "based", HELLO)
    listed = json.loads(call(server, "admin", server.token, "GET", "/v2/_catalog").body)["repositories"]
    base = next(name for name in listed if name.startswith("runtime/python"))
    tag = json.loads(call(server, "admin", server.token, "GET", f"/v2/{base}/tags/list").body)["tags"][0]
    token = server.faas("token", "create", "a-deployer", "--role", "deployer").stdout.strip()
    manifest = call(server, "a-deployer", token, "GET", f"/v2/{base}/manifests/{tag}")
    assert manifest.status == 200
    path = f"/v2/{base}/manifests/{tag}"
    assert call(server, "a-deployer", token, "PUT", path, manifest.body, media_types.OCI_MANIFEST).status == 403
    assert call(server, "a-deployer", token, "DELETE", path).status == 403
    assert call(server, "a-deployer", token, "POST", f"/v2/{base}/blobs/uploads/").status == 403
    assert call(server, "admin", server.token, "PUT", path, manifest.body, media_types.OCI_MANIFEST).status == 201


def test_images_are_listed_removed_and_collected_from_the_command_line(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "listed", HELLO)
    server.push_code(tmp_path, "listed", HELLO.replace("hello", "hello again"))
    rows = json.loads(server.faas("image", "ls", "listed", "-o", "json").stdout)
    assert {row["tag"] for row in rows} == {"latest", "v1", "v2"}
    assert all(row["bytes"] > 1e6 for row in rows)  # with the runtime base
    assert "listed:v1" in server.faas("image", "ls", "-o", "name").stdout.split()
    digest = next(row["digest"] for row in rows if row["tag"] == "v1")
    held = server.faas("image", "rm", f"listed@{digest}", check=False)
    assert held.returncode == 1
    assert "listed@v1" in held.stderr
    server.faas("image", "rm", "listed:v1")
    assert "listed:v1" not in server.faas("image", "ls", "listed", "-o", "name").stdout.split()
    assert server.faas("image", "rm", "listed", check=False).returncode == 2
    assert server.faas("image", "rm", "listed:v99", check=False).returncode == 3
    assert "would free" in server.faas("image", "gc", "--dry-run").stdout
    assert set(json.loads(server.faas("image", "gc", "-o", "json").stdout)) == COLLECTED
    assert server.get("/function/listed:v1").text == "hello"  # kept for a rollback


def test_garbage_is_collected_by_an_administrator_and_what_is_deployed_stays(
    server: RunningServer, tmp_path: Path
) -> None:
    server.push_code(tmp_path, "stays", HELLO)
    token = server.faas("token", "create", "no-collector", "--role", "deployer").stdout.strip()
    assert call(server, "no-collector", token, "POST", "/v2/_faas/gc").status == 403
    would = json.loads(call(server, "admin", server.token, "POST", "/v2/_faas/gc?dry-run=1").body)
    done = json.loads(call(server, "admin", server.token, "POST", "/v2/_faas/gc").body)
    assert set(would) == set(done) == COLLECTED
    server.faas("scale", "stays", "0")
    assert server.get("/function/stays").text == "hello"


def test_no_namespace_is_called_as_the_bases_repositories_are(server: RunningServer) -> None:
    made = server.faas("token", "create", "sly", "--role", "deployer", "--namespace", "runtime", check=False)
    assert made.returncode == 2
    assert server.request("PUT", "/v1/functions/x.runtime", b"{}", api=True).status == 400
