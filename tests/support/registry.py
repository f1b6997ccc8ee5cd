"""A registry in a process of its own (`python -m registry`), and the smallest client of it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faas.oci import media_types
from faas.oci.digest import Digest
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The spec's error code."""
        return str(self.json()["errors"][0]["code"])


class RegistryProcess:
    module = "registry"

    def __init__(self, data: Path, auth: str = "none", flags: Sequence[str] = (), log: Path | None = None) -> None:
        self.data = data
        self.log = log  # what it writes to stderr goes there
        self.flags = flags
        self.auth = auth
        self.host = f"127.0.0.1:{free_port(self)}"  # the same again after a stop
        self.process: subprocess.Popen[str]

    def start(self) -> RegistryProcess:
        command = [sys.executable, "-m", self.module, "--data", str(self.data), "--listen", self.host]
        command += ["--auth", self.auth, *self.flags]
        with self.log.open("a") if self.log else contextlib.nullcontext() as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("registry at "), line
        self.host = line.split()[-1]
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        os.kill(self.process.pid, number)
        code = self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.host.rpartition(":")
        return host, int(port)

    @property
    def token(self) -> str:
        return (self.data / "admin-token").read_text().strip()

    @property
    def password(self) -> str:
        """For clients that cannot go without one."""
        return "any" if self.auth == "none" else self.token

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Reply:
        """One request; the path goes out as it is written. `chunked=True` sends the body without a length."""
        connection = http.client.HTTPConnection(self.host, timeout=100)
        sent = dict(headers or {})
        if self.auth != "none" and options.pop("login", True):
            sent["Authorization"] = "Basic " + base64.b64encode(f"admin:{self.token}".encode()).decode()
        try:
            if options.pop("chunked", False):
                assert body is not None
                pieces = iter([body[i : i + 1000] for i in range(0, len(body), 1000)])
                connection.request(method, path, pieces, {**sent, "Transfer-Encoding": "chunked"}, encode_chunked=True)
            else:
                connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Reply(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def push_blob(self, repository: str, data: bytes) -> str:
        digest = str(Digest.of(data))
        reply = self.call("POST", f"/v2/{repository}/blobs/uploads/?digest={digest}", data)
        assert reply.status == 201, reply.body
        return digest

    def push_image(self, repository: str, tag: str, layer: bytes = b"layer", **more: Any) -> tuple[str, bytes]:
        """(digest, bytes) of a manifest with one layer."""
        config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_types.OCI_MANIFEST,
            "config": {
                "mediaType": media_types.OCI_CONFIG,
                "digest": self.push_blob(repository, config),
                "size": len(config),
            },
            "layers": [
                {"mediaType": media_types.OCI_LAYER, "digest": self.push_blob(repository, layer), "size": len(layer)}
            ],
            **more,
        }
        raw = json.dumps(manifest, indent=3).encode()  # unusual white space: it must come back as it is
        reply = self.call("PUT", f"/v2/{repository}/manifests/{tag}", raw, {"Content-Type": media_types.OCI_MANIFEST})
        assert reply.status == 201, reply.body
        return reply.headers["Docker-Content-Digest"], raw


@contextmanager
def registry_process(
    data: Path, auth: str = "none", flags: Sequence[str] = (), log: Path | None = None
) -> Iterator[RegistryProcess]:
    running = RegistryProcess(data, auth, flags, log).start()
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()
