"""The second person's first day: a colleague on another machine, with a token of one namespace and the pages alone."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.certificates import certify
from tests.support.machines import OURS, THEIRS
from tests.support.package_index import PackageIndex
from tests.support.tls_server import FAAS, TlsServer, tls_server
from tests.unit.test_build_dependencies import wheel

pytestmark = [pytest.mark.root, pytest.mark.oci]

PACKAGES = "packages.example.com"
PASSWORD, VALUE = "index-password-7c31", "canary-of-bea-05d2"
TOML = """name = "invoices"
runtime = "python"
handler = "app.handler"
public = true

[secrets]
BANK_KEY = "bank-key"
"""
GOOD = """
import os
import ours

def handler(event, context):
    print("a bill for", event["queryStringParameters"]["who"])
    return f"{ours.SAID} {len(os.environ['BANK_KEY'])}"
"""
BAD_NAME = GOOD.replace("def handler", "def handle_it")
BAD_CODE = GOOD.replace('["queryStringParameters"]', '["query"]')


@dataclass(frozen=True)
class Said:
    out: str
    err: str


@dataclass(frozen=True)
class Colleague:
    """Bea, at her machine."""

    server: TlsServer
    home: Path
    env: dict[str, str]

    def __call__(self, command: str, stdin: str = "", code: int = 0) -> Said:
        """A command as she types it."""
        words = shlex.split(re.sub(r"^faas ", f"{FAAS} ", command))
        done = self.server.there.run(*words, stdin=stdin, env=self.env, cwd=self.home)
        print(f"$ {command}  # {done.returncode}\n{done.stdout}{done.stderr}")  # the day, where a test fails
        assert done.returncode == code, command
        return Said(done.stdout, done.stderr)

    def writes(self, code: str) -> None:
        (self.home / "invoices" / "app.py").write_text(code)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    with tls_server(tmp_path_factory.mktemp("second"), PACKAGES) as found:
        yield found


@pytest.fixture
def index(server: TlsServer, tmp_path: Path) -> Iterator[PackageIndex]:
    """The company's, with a login and a CA of its own, that both machines reach."""
    wheel(tmp_path / "index" / "ours", "ours", "1.0", {"ours.py": "SAID = 'paid with'\n"})
    certificate = certify(tmp_path, "company", PACKAGES)
    login = ("bea", PASSWORD)
    with PackageIndex(tmp_path / "index", login, certificate, address=OURS, name=PACKAGES) as found:
        yield found


@pytest.fixture
def bea(server: TlsServer, project_root: Path, tmp_path: Path) -> Colleague:
    home = server.there.home
    (home / "invoices").mkdir()
    (home / "invoices" / "faas.toml").write_text(TOML)
    (home / "invoices" / "requirements.txt").write_text("ours==1.0\n")
    env = {"PYTHONPATH": str(project_root), "PIP_CERT": str(tmp_path / "company.crt"), "PIP_CONFIG_FILE": os.devnull}
    return Colleague(server, home, env)


def test_a_colleague_works_a_day_on_another_machine_from_the_messages_alone(
    server: TlsServer, index: PackageIndex, bea: Colleague
) -> None:
    logs_in(server, bea)
    url = pushes(bea, index)
    assert calls(bea, url) == f"paid with {len(VALUE)}"
    assert "a bill for ada" in bea("faas logs invoices --since 5m").out
    finds_a_bad_name(bea)
    assert calls(bea, url) == f"paid with {len(VALUE)}"
    finds_bad_code(bea, url)
    assert bea("faas rollback invoices").out == "v2\n"  # v1 had no secret, v3 no handler
    assert calls(bea, url) == f"paid with {len(VALUE)}"
    may_no_more(bea)
    is_in_the_audit_log(server)


def found(pattern: str, text: str) -> str:
    """What a message tells to do, or to look for."""
    match = re.search(pattern, text)
    assert match is not None, text
    return match[0]


def logs_in(server: TlsServer, bea: Colleague) -> None:
    """The administrator makes a user and gives its first token away; she logs in with it."""
    server.server.faas("user", "create", "bea", "--role", "deployer", "-n", "shop")
    token = server.server.faas("token", "create", "first", "--user", "bea").stdout
    address = f"https://{server.at('api_listen')}"
    said = bea(f"faas login {address} --token-stdin -n shop", stdin=token, code=5).err
    assert "is not trusted here" in said
    assert "--ca-fingerprint" in said
    bea(f"faas login {address} --token-stdin -n shop --ca-fingerprint {server.fingerprint}", stdin=token)
    assert "deployer in shop" in bea("faas whoami").out


def pushes(bea: Colleague, index: PackageIndex) -> str:
    """The secret that is missing is named, with the command that stores it. Returns the function's URL."""
    bea.writes(GOOD)
    bea.env["PIP_INDEX_URL"] = index.url_with_login
    said = bea("faas push invoices", code=2).err
    assert "there is no secret bank-key" in said
    bea(found(r"faas secret set \S+", said), stdin=VALUE)
    done = bea("faas push invoices")
    assert PASSWORD not in said + done.err
    return done.out.strip().splitlines()[-1]


def calls(bea: Colleague, url: str) -> str:
    return str(json.loads(bea(f"curl -sS --cacert .config/faas/ca.crt {url}?who=ada").out))


def finds_a_bad_name(bea: Colleague) -> None:
    """Code that cannot start is refused by the push, in words that name the key; what was live stays."""
    bea.writes(BAD_NAME)
    said = bea("faas push invoices", code=1).err
    assert "the handler was not found" in said
    assert "app.handler" in said


def finds_bad_code(bea: Colleague, url: str) -> None:
    """Code that starts, and fails when it is called: the call's answer, the page, the log, each leading to the next."""
    bea.writes(BAD_CODE)
    bea("faas push invoices")
    heard = bea(f"curl -sS -D - --cacert .config/faas/ca.crt {url}?who=ada").out
    assert "502" in heard.splitlines()[0]
    request_id = found(r"(?<=X-Request-Id: )\S+", heard)
    assert VALUE not in heard
    page = bea("faas describe invoices").out
    assert "KeyError" in page
    log = bea(found(rf"faas logs \S+ --request-id {request_id}", page)).out
    assert "app.py" in log
    assert "KeyError: 'query'" in log
    said = bea("faas invoke invoices --data '{}'", code=7).err
    assert "KeyError" in said
    assert re.search(r"faas logs \S+ --request-id \S+", said)


def may_no_more(bea: Colleague) -> None:
    said = bea("faas audit ls", code=4).err
    assert "bea may not administer" in said
    assert "deployer in shop" in bea(found("faas whoami", said)).out
    assert "bea may not read in default" in bea("faas ls --namespace default", code=4).err


def is_in_the_audit_log(server: TlsServer) -> None:
    """Who, from where, what, and how it ended; no value."""
    page = server.server.faas("audit", "ls", "--by", "bea", "-o", "json", "--limit", "200").stdout
    rows = json.loads(page)
    assert {row["address"] for row in rows} == {THEIRS}
    assert {row["token"] for row in rows} == {"first@bea"}
    done = [(row["action"], row["namespace"], row["outcome"]) for row in reversed(rows)]
    for action in ("secrets.put", "functions.put", "functions.rollback", "images.push"):
        assert (action, "shop", "done") in done, done
    assert ("functions.put", "shop", "failed") in done, done
    assert VALUE not in page
    assert "are as they were written" in server.server.faas("audit", "verify").stderr
