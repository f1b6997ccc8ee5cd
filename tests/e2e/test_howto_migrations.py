"""The how-tos for those who come from AWS Lambda and OpenFaaS, command by command, with what they have there."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import pytest

from tests.support import layouts
from tests.support.howto import HowTo
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

# As it lies on AWS: an event of any trigger, an answer as a function URL takes it.
LAMBDA = """
import os

def lambda_handler(event, context):
    if event.get("fail"):
        raise ValueError("as asked")
    if "Records" in event:
        return event["Records"][0]["s3"]["object"]["key"]
    try:
        from rates import RATE
    except ImportError:
        RATE = 0
    return {"statusCode": 201, "headers": {"X-Table": os.environ["TABLE"]}, "body": f"{event['rawPath']} at {RATE}"}
"""
SHELL = """handler() { echo "seen $1" >&2; printf '{"echo": %s}' "$1"; }\n"""
ARN = "arn:aws:apigateway:eu-west-1:lambda:path/2015-03-31/functions/arn:aws:lambda:eu-west-1:1:function:"
EXPORTED = {
    "openapi": "3.0.1",
    "info": {"title": "shop", "version": "1"},
    "paths": {
        "/orders/{id}": {
            "get": {
                "responses": {"default": {"description": "an order"}},
                "x-amazon-apigateway-integration": {
                    "type": "aws_proxy", "httpMethod": "POST", "payloadFormatVersion": "2.0",
                    "uri": f"{ARN}checkout/invocations", "connectionType": "INTERNET",
                },
            }
        }
    },
    "x-amazon-apigateway-importexport-version": "1.0",
}  # fmt: skip


def test_a_function_of_aws_lambda_moves_by_the_commands_of_its_page(
    server: RunningServer, project_root: Path, tmp_path: Path
) -> None:
    page = HowTo(project_root / "deploy" / "howto" / "from-aws-lambda.md", server)
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout" / "lambda_function.py").write_text(LAMBDA)
    (tmp_path / "checkout" / "faas.toml").write_text(*page.blocks("toml"))
    with zipfile.ZipFile(tmp_path / "layer.zip", "w") as layer:
        layer.writestr("python/rates.py", "RATE = 7\n")
    layouts.aws_provided(tmp_path / "image", SHELL).archive(tmp_path / "checkout.tar")
    (tmp_path / "api.json").write_text(json.dumps(EXPORTED))
    folder, layers, image, api, route, failing, letters = page.blocks()
    try:
        said = page.run(folder, tmp_path)
        assert "/orders/7 at 0" in said
        assert '"cat.jpg"' in said
        assert "REPORT RequestId" in said
        described = server.get("/v1/functions/checkout", api=True).json()["spec"]
        assert (described["scale"]["reserved"], described["scale"]["min"], described["memory"]) == (2, 1, 256)
        page.run(layers, tmp_path)
        assert server.get("/function/checkout/x").text == "/x at 7"
        assert '"echo": {"id": 7}' in page.run(image, tmp_path)
        said = page.run(api, tmp_path)
        assert "connectionType: left out" in said
        assert "orders/7 at 7" in said
        routed, answered = page.run(route, tmp_path).splitlines()[0], server.get("/receipts/7").text
        assert answered == "/receipts/7 at 7"
        server.faas("route", "rm", routed)
        page.run(failing, tmp_path)
        deadline = time.monotonic() + 30
        while not dead_letters(server):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert "ValueError" in page.run(letters, tmp_path)
        assert dead_letters(server) == []
    finally:  # what it has reserved is others' again
        server.faas("api", "rm", "shop", check=False)
        server.faas("rm", "checkout", "--yes", check=False)
    assert server.get("/2015-03-31/functions", api=True).status == 501


def dead_letters(server: RunningServer) -> list[object]:
    return list(server.get("/v1/dead-letters?function=checkout", api=True).json()["dead_letters"])


def test_a_function_of_openfaas_moves_by_the_commands_of_its_page(
    server: RunningServer, project_root: Path, tmp_path: Path
) -> None:
    page = HowTo(project_root / "deploy" / "howto" / "from-openfaas.md", server)
    (tmp_path / "figlet").mkdir()
    (tmp_path / "figlet" / "faas.toml").write_text(*page.blocks("toml"))
    layouts.watchdog(tmp_path / "image", "app").archive(tmp_path / "figlet" / "figlet.tar")
    first, later, closed = page.blocks()
    try:
        said = page.run(first, tmp_path)
        assert "USER 'app' is root or not numeric" in said
        assert said.endswith("POST / as sent")
        assert server.get("/function/figlet/file/var/openfaas/secrets/figlet-key").text == "swordfish"
        assert server.get("/function/figlet/env/LEVEL").text == "high"
        said = page.run(later, tmp_path)
        assert "HTTP/1.1 202 Accepted" in said
        assert "X-Call-Id: " in said
        assert page.run(closed, tmp_path).endswith("POST / with a token")
        assert server.get("/function/figlet").status == 401
    finally:
        server.faas("rm", "figlet", "--yes", check=False)
