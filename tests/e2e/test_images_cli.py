"""Images by hand on real servers: over an air gap, what is known of them, and those that must not become a function."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from faas.oci import media_types
from faas.oci.digest import Digest
from faas.oci.platform import architecture
from tests.integration.test_hostile_layers import archive, entry
from tests.support.images import SKELETON, tar_of
from tests.support.layouts import compiled
from tests.support.registry import RegistryProcess, Reply
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

HELLO = "def handler(event, context):\n    return {'statusCode': 200, 'body': 'hello over the gap'}\n"


class Plain(RegistryProcess):
    """The smallest client, of a server's registry."""

    def __init__(self, server: RunningServer) -> None:
        super().__init__(server.data, "basic")
        self.host = server.registry.partition("://")[2] or server.registry

    def push(self, repository: str, config: bytes, *layers: bytes) -> str:
        """Tagged v1; its digest."""
        config_row = {"mediaType": media_types.OCI_CONFIG, "digest": self.push_blob(repository, config)}
        rows = [
            {"mediaType": media_types.OCI_LAYER, "digest": self.push_blob(repository, layer), "size": len(layer)}
            for layer in layers
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": {**config_row, "size": len(config)},
            "layers": rows,
        }
        raw = json.dumps(manifest).encode()
        headers = {"Content-Type": media_types.OCI_MANIFEST}
        reply = self.call("PUT", f"/v2/{repository}/manifests/v1", raw, headers)
        assert reply.status == 201, reply.body
        return reply.headers["Docker-Content-Digest"]


def config_of(run: Mapping[str, Any], *layers: bytes, **more: Any) -> bytes:
    diff_ids = [str(Digest.of(layer)) for layer in layers]
    value = {"architecture": architecture(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}, **more}
    return json.dumps({**value, "config": run}).encode()


def test_a_function_goes_over_an_air_gap_to_a_fresh_server(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "gap", HELLO)
    described = json.loads(server.faas("image", "describe", "gap:v1", "-o", "json").stdout)
    assert described["holders"] == ["gap@v1"]
    assert sorted(described["tags"]) == ["latest", "v1"]
    assert "gap" in server.faas("image", "describe", "gap:v1").stdout
    stick = tmp_path / "stick.tar"
    exported = server.faas("image", "export", "gap:v1", stick)
    assert exported.stdout.strip().splitlines()[-1] == str(stick)
    with RunningServer(tmp_path / "fresh", "--driver", "oci") as fresh:
        imported = fresh.faas("image", "import", stick)
        assert imported.stdout.strip().splitlines()[-1] == "gap:v1"
        flags = ("--name", "gap", "--public")
        url = fresh.faas("push", "--image", "gap:v1", *flags).stdout.strip().splitlines()[-1]
        assert url == f"{fresh.public}/function/gap"
        assert fresh.get("/function/gap").text == server.get("/function/gap").text == "hello over the gap"
        deployed = fresh.get("/v1/functions/gap", api=True).json()["image"]
        assert deployed.rpartition("@")[2] == described["digest"]


HOSTILE = {
    "a name above the root": (archive(entry("../../etc/evil", content=b"x")), "leaves the root"),
    "a hard link out of it": (archive(entry("x", tarfile.LNKTYPE, link="../../etc/shadow")), "leaves the root"),
    "a path of a thousand folders": (archive(entry("/".join(["d"] * 1000))), "deep"),
    "a truncated archive": (archive(entry("a", content=b"x" * 100_000))[:50_000], "broken"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_layer_is_kept_bit_for_bit_and_never_deployed(
    server: RunningServer, tmp_path: Path, kind: str
) -> None:
    layer, words = HOSTILE[kind]
    plain, name = Plain(server), f"hostile-{list(HOSTILE).index(kind)}"
    digest = plain.push(name, config_of({"Cmd": ["/x"]}, layer), layer)
    pulled: Reply = plain.call("GET", f"/v2/{name}/manifests/{digest}")
    assert str(Digest.of(pulled.body)) == digest
    assert plain.call("GET", f"/v2/{name}/blobs/{pulled.json()['layers'][0]['digest']}").body == layer
    done = server.faas("push", "--image", f"{name}:v1", "--name", name, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert server.get(f"/v1/functions/{name}", api=True).status == 404
    server.faas("image", "export", f"{name}:v1", tmp_path / "x.tar")
    assert plain.call("GET", f"/v2/{name}/manifests/v1").body == pulled.body


# What an image's config may say: (its `config`, more keys beside it) → words of the refusal, or "" where it runs.

ENTRY = {"Entrypoint": ["/web"]}
ODDITIES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a command of 1 MB": ({"Cmd": ["/web", "8080", "x" * 1_000_000]}, {}, "too large"),
    "10,000 small variables": ({**ENTRY, "Env": [f"V{n}=x" for n in range(10_000)]}, {}, ""),
    "10,000 large variables": ({**ENTRY, "Env": [f"V{n}={'x' * 200}" for n in range(10_000)]}, {}, "too large"),
    "variables without a name or a value": ({**ENTRY, "Env": ["=x", "ALONE", ""]}, {}, ""),
    "a variable with a NUL": ({**ENTRY, "Env": ["A=\x00"]}, {}, "Env must be"),
    "a user above 2^31": ({**ENTRY, "User": "2147483648:0"}, {}, "is not a user"),
    "root": ({**ENTRY, "User": "root"}, {}, ""),
    "a user's name": ({**ENTRY, "User": "app:app"}, {}, ""),
    "a user that is a number in JSON": ({**ENTRY, "User": 0}, {}, ""),
    "a user that is an object": ({**ENTRY, "User": {"uid": 0}}, {}, "User must be a text"),
    "a working directory in /proc": ({**ENTRY, "WorkingDir": "/proc/self/fd/8"}, {}, "working directory"),
    "a working directory that is not there": (
        {**ENTRY, "WorkingDir": "/not/there"},
        {},
        "working directory cannot be entered",
    ),
    "the root as a volume": ({**ENTRY, "Volumes": {"/": {}, "/proc": {}}}, {}, ""),
    "no entry point": ({}, {}, "nothing to run"),
    "an empty entry point": ({"Entrypoint": [""]}, {}, "nothing to run"),
    "an entry point of numbers": ({"Entrypoint": [1]}, {}, "Entrypoint must be"),
    "half a character": ({"Entrypoint": ["/web", "\ud800"]}, {}, "must be JSON"),
    "another machine": (ENTRY, {"architecture": "s390x"}, "this machine is linux/"),
    "another system": (ENTRY, {"os": "windows"}, "this machine is linux/"),
    "no architecture": (ENTRY, {"architecture": ""}, "this machine is linux/"),
    "ports that are none": ({**ENTRY, "ExposedPorts": {"0/tcp": {}, "70000": {}, "9" * 5000: {}, "x/y": {}}}, {}, ""),
    "a list of ports": ({**ENTRY, "ExposedPorts": [80, "x"]}, {}, "ExposedPorts must be"),
    "labels that are a text": ({**ENTRY, "Labels": "x"}, {}, "Labels must be"),
    "a config that is a list": ([1], {}, "must be an object"),
    "diff ids that are none": (ENTRY, {"rootfs": {"diff_ids": ["sha256:../.."]}}, "not a sha256"),
    "too few diff ids": (ENTRY, {"rootfs": {"diff_ids": []}}, "0 diff ids"),
    "a stop signal and a health check": ({**ENTRY, "StopSignal": "SIGFOO", "Healthcheck": {"Test": ["CMD"]}}, {}, ""),
}


@pytest.fixture(scope="module")
def layer() -> bytes:
    """One static program that answers HTTP."""
    return tar_of({**SKELETON, "web": compiled("web")})


@pytest.mark.parametrize("oddity", ODDITIES)
def test_what_a_config_says_is_refused_at_deploy_with_its_reason_or_does_no_harm(
    server: RunningServer, layer: bytes, oddity: str
) -> None:
    run, more, words = ODDITIES[oddity]
    name = f"odd-{list(ODDITIES).index(oddity)}"
    Plain(server).push(name, config_of(run, layer, **more), layer)
    path, spec = f"/v1/functions/{name}", {"name": name, "public": True}
    done = server.request("PUT", path, json.dumps({"spec": spec, "image": f"{name}:v1"}).encode(), api=True)
    if words:
        assert done.status == 400, done.text
        assert words in done.json()["error"]["message"]
        assert server.get(path, api=True).status == 404
    else:
        assert done.status in (200, 201), done.text
        assert server.get(f"/function/{name}/x").text == "GET /x "
        assert server.get(f"/function/{name}/uid").text == "65534"
        assert server.request("DELETE", path, api=True).status < 300
