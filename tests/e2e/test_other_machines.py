"""A server with a CA of its own, and another machine that logs in, pushes, calls and reads logs over TLS."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from faas.certificate import Certificate
from faas.local_ca import LIFE
from faas.tls_folder import TlsFolder
from tests.support.commands import run
from tests.support.layouts import layout, text
from tests.support.tls_server import FAAS, LISTENERS, NAME, TlsServer, tls_server

pytestmark = [pytest.mark.root, pytest.mark.oci, pytest.mark.skopeo]

PORTS = dict(zip(LISTENERS, ("8080", "8081", "5000"), strict=True))  # as the page has them


@dataclass(frozen=True)
class Served(TlsServer):
    due: bytes  # the certificate that the server began with, in its last months

    def here(self, command: str) -> str:
        """A command of the page, with this server's ports and fingerprint."""
        for listener, port in PORTS.items():
            command = command.replace(f"{NAME}:{port}", self.at(listener))
        command = command.replace("sha256:…", f"{self.fingerprint} --token-stdin")
        return re.sub(r"^faas ", f"{FAAS} ", command)

    def shown(self) -> set[bytes]:
        """The certificates that the three listeners show."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        found = set()
        for port in self.ports.values():
            with (
                socket.create_connection(("127.0.0.1", port), 10) as raw,
                context.wrap_socket(raw, server_hostname=NAME) as client,
            ):
                found.add(client.getpeercert(binary_form=True) or b"")
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    due: list[bytes] = []
    folder = tmp_path_factory.mktemp("machines")
    with tls_server(folder, before=lambda made: due.append(_due(made))) as found:
        yield Served(found.server, found.there, found.ports, *due)


def _due(folder: TlsFolder) -> bytes:
    """A certificate that was issued long ago, in place of the first."""
    ca = folder.ca()
    assert ca is not None
    old = ca.issue([NAME, "localhost", "127.0.0.1"], datetime.now(UTC) - LIFE + timedelta(days=30))
    mode = folder.server_file.stat()
    folder.server_file.write_bytes(old)
    os.chown(folder.server_file, mode.st_uid, mode.st_gid)
    return ssl.PEM_cert_to_DER_cert(Certificate.read(old).pem)


def test_a_certificate_that_ends_soon_is_issued_anew_and_shown_by_all_listeners_without_a_restart(
    served: Served,
) -> None:
    pid = json.loads(served.server.server_file.read_text())["pid"]
    deadline = time.monotonic() + 60
    while served.due in (shown := served.shown()) or len(shown) > 1:
        assert time.monotonic() < deadline, served.server.log_tail()
        time.sleep(0.2)
    told = json.loads(served.server.server_file.read_text())
    now = Certificate.read(served.folder.server_file.read_bytes())
    assert shown == {ssl.PEM_cert_to_DER_cert(now.pem)}
    assert (told["pid"], told["certificate"], told["pin"]) == (pid, now.pem, now.pin)
    page = served.server.get("/metrics", api=True).text
    (value,) = re.findall(r'^faas_tls_certificate_end_timestamp_seconds\{name=""\} (\S+)$', page, re.M)
    assert float(value) == now.until


def test_the_cas_key_is_roots_and_the_server_does_not_have_it(served: Served) -> None:
    found = (served.folder.path / "ca.pem").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, 0, 0o600)
    server = Path(f"/proc/{served.server.pid}").stat()
    words = ["setpriv", f"--reuid={server.st_uid}", f"--regid={server.st_gid}", "--clear-groups", "cat"]
    assert server.st_uid != 0
    assert "Permission denied" in run(*words, served.folder.path / "ca.pem", check=False)


def test_the_page_works_as_written_from_another_machine(served: Served, project_root: Path, tmp_path: Path) -> None:
    page = (project_root / "deploy/howto/other-machines.md").read_text()
    up, own, images = (block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", page, re.S))
    assert up == [f"./deploy/up --host {NAME}"]  # tests/e2e/test_deploy.py runs it
    env = {"PYTHONPATH": str(project_root)}
    for command in own:
        stdin = served.server.token + "\n" if "login" in command else ""
        done = served.there.run("sh", "-c", served.here(command), stdin=stdin, env=env, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert "hello" in done.stdout.lower()
    image = layout(tmp_path / "image", [lambda _: [text("hello", "there")]])
    for command in images:
        words = served.here(command).removeprefix("sudo ")
        words = words.replace("docker login", "skopeo login --password-stdin")
        words = re.sub(r"docker push (\S+)", rf"skopeo --insecure-policy copy oci:{image.folder} docker://\1", words)
        stdin = served.server.token if "login" in command else ""
        done = served.there.run("sh", "-c", words, stdin=stdin, env=env)
        assert done.returncode == 0, (command, done.stderr)
    done = served.there.run(*FAAS.split(), "image", "ls", "-o", "name", env=env)
    assert "team/app" in done.stdout, done.stderr


def test_what_has_no_ca_is_refused(served: Served, project_root: Path, tmp_path: Path) -> None:
    public = f"https://{NAME}:{served.ports['listen']}/function/greeting"
    done = served.there.run("curl", "-sS", public)
    assert (done.returncode, "certificate" in done.stderr) == (60, True)
    done = served.there.run("curl", "-sS", public.replace("https", "http"))
    assert done.stdout == ""
    registry = f"{NAME}:{served.ports['registry_listen']}"
    done = served.there.run("skopeo", "list-tags", f"docker://{registry}/team/app", "--cert-dir", tmp_path)
    assert done.returncode == 1
    env = {
        "PYTHONPATH": str(project_root),
        "FAAS_URL": f"https://{NAME}:{served.ports['api_listen']}",
        "FAAS_TOKEN": served.server.token,
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    done = served.there.run(*FAAS.split(), "ls", env=env)
    assert (done.returncode, "is not trusted here" in done.stderr) == (5, True)


def test_each_machine_is_told_the_registry_by_the_name_that_it_uses(served: Served) -> None:
    port = served.ports["registry_listen"]
    assert served.server.get("/v1/info", api=True).json()["registry"] == f"127.0.0.1:{port}"
    done = served.there.run(
        "curl", "-sS", "--cacert", served.folder.ca_file, "-H", f"Authorization: Bearer {served.server.token}",
        f"https://{NAME}:{served.ports['api_listen']}/v1/info",
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["registry"] == f"{NAME}:{port}"
    assert urlsplit(told["public_url"]).netloc == f"{NAME}:{served.ports['listen']}"
