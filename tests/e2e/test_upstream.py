"""A function from an image that another registry has: fetched when it is deployed, and there when that one is gone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support import layouts
from tests.support.registry import registry_process
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.skopeo]


def test_an_image_of_an_upstream_is_deployed_and_outlives_it(tmp_path: Path) -> None:
    image = layouts.web(tmp_path / "layout")
    with registry_process(tmp_path / "upstream") as upstream:
        copy = ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{image.folder}"]
        subprocess.run([*copy, f"docker://{upstream.host}/team/web:v1"], check=True, capture_output=True, timeout=60)
        secret = tmp_path / "password"
        secret.write_text("pa55word")
        secret.chmod(0o600)
        entry = f"up.example=http://{upstream.host},user=u,password-file={secret},expire=0s"
        with RunningServer(tmp_path / "data", "--driver", "oci", "--registry-upstreams", entry) as server:
            registry = server.registry.removeprefix("http://")
            body = {"image": f"{registry}/up.example/team/web:v1", "spec": {"name": "web", "public": True}}
            deployed = server.request("PUT", "/v1/functions/web", json.dumps(body).encode(), api=True)
            assert deployed.status in (200, 201), deployed.text
            assert server.get("/function/web/").status == 200
            upstream.stop()
            again = {**body, "spec": {**body["spec"], "memory": 256}}  # type: ignore[dict-item]
            stale = server.request("PUT", "/v1/functions/web", json.dumps(again).encode(), api=True)
            assert stale.status == 200, stale.text
            assert server.get("/function/web/").status == 200
            shown = server.faas("config", "--running", "--output", "json").stdout
            assert str(secret) in shown
            assert "pa55word" not in shown + server.log_file.read_text()
