"""The commands of registry/README.md, each of them, as somebody would who has a registry that runs alone."""

from __future__ import annotations

import http.client
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.registry import RegistryProcess, registry_process

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def blocks(project_root: Path) -> list[str]:
    return re.findall(r"^```\n(.*?)^```", (project_root / "registry/README.md").read_text(), re.S | re.M)


@pytest.fixture
def alone(tmp_path: Path, blocks: list[str]) -> Iterator[RegistryProcess]:
    """As the first command starts it, but for the port."""
    command = "python -m registry --data DIR --listen 127.0.0.1:5000\n"
    assert blocks[0] == command
    with registry_process(tmp_path / "data", auth="basic") as running:
        yield running


def run(block: str, registry: RegistryProcess, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A block as one script, with this registry's folder and address."""
    words = block.replace("DIR", str(registry.data)).replace("127.0.0.1:5000", registry.host)
    words = re.sub(r"^python ", f"{sys.executable} ", words, flags=re.M)
    words = re.sub(r"(^|\| )faas ", rf"\g<1>{sys.executable} -m faas.cli ", words, flags=re.M)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FAAS_")}
    env = {**kept, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "DOCKER_CONFIG": str(home), **env}
    return subprocess.run(["sh", "-ec", words], env=env, input=PASSWORD, capture_output=True, text=True, timeout=120)


def test_users_are_added_listed_and_removed(alone: RegistryProcess, blocks: list[str], tmp_path: Path) -> None:
    done = run(blocks[1], alone, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "vera deployer * team/*\n"
    wrong = run("python -m registry user rm vera --data DIR", alone, tmp_path)
    assert (wrong.returncode, wrong.stderr) == (1, "error: there is no user vera\n  python -m registry user ls\n")


def test_the_command_line_keeps_a_registry_that_runs_alone(
    alone: RegistryProcess, blocks: list[str], tmp_path: Path
) -> None:
    alone.push_image("team/app", "v1")
    done = run(blocks[2], alone, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^team/app +v1 ", done.stdout, re.M)
    assert alone.call("GET", "/v2/_faas/quotas").json()["quotas"][0]["logical_bytes"] == 10 << 30
    assert alone.call("GET", "/v2/_faas/retention").json()["rules"][0]["keep_last"] == 20
    assert alone.call("GET", "/v2/_faas/policies").json()["policies"][0]["public"] is True


def test_a_user_logs_in_by_password_and_may_what_the_role_may(alone: RegistryProcess, tmp_path: Path) -> None:
    alone.push_image("team/app", "v1")
    alone.push_image("other", "v1")
    script = """
python -m registry user add vera --data DIR --repository 'team/*'
sleep 1.5  # it follows within a second
echo "$PASSWORD" | faas login http://127.0.0.1:5000 --user vera --token-stdin
faas image ls -o name
"""
    done = run(script, alone, tmp_path, PASSWORD=PASSWORD)
    assert done.stdout.splitlines()[-1] == "team/app:v1", done.stderr
    refused = run("faas image gc", alone, tmp_path)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert "for an administrator" in refused.stderr
    elsewhere = run("faas ls", alone, tmp_path)
    assert elsewhere.returncode == 3, "it has no functions"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--listen", "5000"], "--listen must be HOST:PORT, not '5000'", ""),
        (["--listen", "0.0.0.0:0", "--auth", "none"], "listens on loopback only", "--auth basic"),
        (["--listen", "0.0.0.0:0"], "there is no TLS", "--tls-cert"),
        (["--listen", "127.0.0.1:0", "--tls-cert", "/nowhere"], "the certificate cannot be used", "--tls-key"),
        (["--upstream", "docker.io"], "an entry has no =", "NAME=URL"),
    ],
)
def test_a_start_that_is_refused_says_what_to_do(tmp_path: Path, words: list[str], message: str, hint: str) -> None:
    command = [sys.executable, "-m", "registry", "--data", str(tmp_path / "data"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr
    assert hint in done.stderr
    assert not (tmp_path / "data").exists()


def test_an_upstream_is_configured_as_written(blocks: list[str], tmp_path: Path) -> None:
    """Nothing is asked of it here: `tests/integration/test_registry_upstream.py` does that to one of our own."""
    (command,) = blocks[3:]
    assert command.startswith("python -m registry --data DIR --upstream ")
    with registry_process(tmp_path / "data", flags=command.split()[5:]) as running:
        assert running.call("PUT", "/v2/docker.io/library/x/manifests/v1", b"{}").status == 403


def test_it_speaks_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert", tmp_path / "key"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key))
    with registry_process(tmp_path / "data", auth="token", flags=flags) as running:
        trusting = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection(running.host, timeout=20, context=trusting)
        connection.request("GET", "/v2/")
        answer = connection.getresponse()
        assert answer.status == 401
        assert f'realm="https://{running.host}/token"' in answer.headers["WWW-Authenticate"]
        connection.close()
