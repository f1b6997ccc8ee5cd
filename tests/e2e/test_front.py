"""A server behind a proxy that speaks HTTP/2, as deploy/howto/behind-a-proxy.md says, and one with own certificates."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.certificates import certify
from tests.support.ports import free_port
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

NAME = "functions.example.com"
CLIENT = "127.0.0.2"  # who asks the proxy, which itself asks from 127.0.0.1
CODE = """
def handler(event, context):
    http, headers = event["requestContext"]["http"], event["headers"]
    fields = [headers.get(n, "") for n in ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")]
    return [http["sourceIp"], *fields]
"""


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("front")
    (folder / "data").mkdir()
    as_written("faas", project_root, {"/var/lib/faas/": f"{folder}/data/"})
    flags = ("--driver", "oci", "--access-log", "json")
    with RunningServer(folder / "data", *flags) as server:
        rows = json.loads(server.faas("config", "--running", "-o", "json").stdout)
        assert {"trusted_proxies": "127.0.0.1", "public_url": f"https://{NAME}"}.items() <= {
            row["name"]: row["value"] for row in rows
        }.items()
        server.push_code(folder, "asked", CODE)
        yield server


def as_written(chapter: str, project_root: Path, places: Mapping[str, str]) -> None:
    """The commands of a chapter of the page, in these places, without those that are for the machine's own services."""
    page = (project_root / "deploy/howto/behind-a-proxy.md").read_text()
    (script,) = re.findall(rf"^## {chapter}\n.*?^```sh\n(.*?)^```$", page, re.S | re.M)
    others = ("apt-get install", "systemctl reload", "nginx -t", "./deploy/up")
    kept = "".join(line for line in script.splitlines(keepends=True) if not line.startswith(others))
    for written, here in places.items():
        assert written in kept
        kept = kept.replace(written, here)
    done = subprocess.run(["sh", "-ec", kept], cwd=project_root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def running(*command: str | Path, port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(20)


def ask(port: int, path: str, *more: str) -> tuple[str, list[str]]:
    """HTTP's version, and the function's answer."""
    host = f"{NAME}:{port}"
    command = ["curl", "-sS", "--http2", "-k", "--interface", CLIENT, "--resolve", f"{host}:127.0.0.1", *more]
    done = subprocess.run(
        [*command, "-w", "\n%{http_version}", f"https://{host}{path}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    body, _, version = done.stdout.rpartition("\n")
    return version, json.loads(body)


def check(server: RunningServer, port: int) -> None:
    """HTTP/2 to a function, with the client's address: the right one, whatever the client itself says."""
    expected = ("2", [CLIENT, f"{CLIENT}, 127.0.0.1", "https", f"{NAME}:{port}"])
    assert ask(port, "/function/asked") == expected
    forged = ("-H", "X-Forwarded-For: 6.6.6.6", "-H", "Forwarded: for=6.6.6.6", "-H", "X-Forwarded-Proto: http")
    assert ask(port, "/function/asked?forged", *forged) == expected
    log = server.data / "access" / "access.log"
    for _ in range(100):
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        found = [line for line in lines if line["path"] == "/function/asked?forged"]
        if found:
            break
        time.sleep(0.05)
    assert (found[-1]["address"], found[-1]["function"], found[-1]["status"]) == (CLIENT, "asked", 200)


@pytest.mark.nginx
def test_http_2_through_nginx_reaches_a_function_with_the_clients_address(
    behind: RunningServer, tmp_path: Path, project_root: Path
) -> None:
    port, plain = free_port(), free_port()
    cert, key = certify(tmp_path, "front", NAME)
    (tmp_path / "nginx" / "conf.d").mkdir(parents=True)
    as_written("nginx", project_root, {"/etc/": f"{tmp_path}/"})
    text = (tmp_path / "nginx" / "conf.d" / "faas.conf").read_text()
    for written, here in {
        "127.0.0.1:8080": urlsplit(behind.public).netloc,
        "listen 443": f"listen 127.0.0.1:{port}",
        "listen 80": f"listen 127.0.0.1:{plain}",
        f"/etc/letsencrypt/live/{NAME}/fullchain.pem": str(cert),
        f"/etc/letsencrypt/live/{NAME}/privkey.pem": str(key),
    }.items():
        assert written in text
        text = text.replace(written, here)
    (tmp_path / "faas.conf").write_text(text)
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off;\nuser root;\nworker_processes 1;\npid {tmp_path}/pid;\nerror_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}include {tmp_path}/faas.conf;\n}}\n"
    )
    assert subprocess.run(["nginx", "-t", "-c", tmp_path / "nginx.conf"], capture_output=True).returncode == 0
    with running("nginx", "-c", tmp_path / "nginx.conf", port=port, log=tmp_path / "log"):
        check(behind, port)


@pytest.mark.caddy
def test_http_2_through_caddy_reaches_a_function_with_the_clients_address(
    behind: RunningServer, tmp_path: Path, project_root: Path
) -> None:
    port = free_port()
    cert, key = certify(tmp_path, "front", NAME)
    (tmp_path / "caddy").mkdir()
    as_written("Caddy", project_root, {"/etc/": f"{tmp_path}/"})
    text = (tmp_path / "caddy" / "Caddyfile").read_text()
    for written, here in {
        "127.0.0.1:8080": urlsplit(behind.public).netloc,
        f"\n{NAME} {{": f"\n{{\n\tadmin off\n\tauto_https off\n}}\nhttps://{NAME}:{port} {{\n\ttls {cert} {key}",
    }.items():
        assert written in text
        text = text.replace(written, here)
    (tmp_path / "Caddyfile").write_text(text)
    command = (
        "env",
        f"HOME={tmp_path}",
        f"XDG_DATA_HOME={tmp_path}",
        "caddy",
        "run",
        "--config",
        tmp_path / "Caddyfile",
    )
    with running(*command, "--adapter", "caddyfile", port=port, log=tmp_path / "log"):
        check(behind, port)


def test_a_server_shows_new_certificates_at_sighup_and_sends_browsers_to_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / "certificates"
    folder.mkdir()
    cert, key = certify(folder, "main", "127.0.0.1")
    names = folder / "names"
    names.mkdir()
    certify(names, "a.example", "a.example")
    for file in (*folder.glob("*.key"), *names.glob("*.key")):
        file.chmod(0o644)  # the server's account reads them again
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    tls = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-certs", str(names))
    flags = ("--driver", "oci", *tls, "--redirect-listen", "127.0.0.1:0")
    with RunningServer(tmp_path / "data", *flags) as server:
        told = json.loads(server.server_file.read_text())
        public = urlsplit(server.public)
        assert public.scheme == "https"
        old = shown(public.port or 0, "a.example")
        assert old != shown(public.port or 0, "other.example")
        host, port = urlsplit(told["redirect"]).hostname, urlsplit(told["redirect"]).port
        with socket.create_connection((str(host), port or 0), 10) as plain:
            plain.sendall(b"GET /function/x HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")
            answer = plain.recv(4096).decode()
        assert answer.startswith("HTTP/1.1 308 ")
        assert f"Location: https://a.example:{public.port}/function/x\r\n" in answer
        certify(names, "a.example", "a.example")
        (names / "a.example.key").chmod(0o644)
        os.kill(server.pid, signal.SIGHUP)
        for _ in range(100):
            if shown(public.port or 0, "a.example") != old:
                break
            time.sleep(0.05)
        assert shown(public.port or 0, "a.example") != old, server.log_tail()


def shown(port: int, name: str) -> bytes:
    """The certificate that a client who asks for `name` is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), 10) as raw,
        context.wrap_socket(raw, server_hostname=name) as client,
    ):
        return client.getpeercert(binary_form=True) or b""
