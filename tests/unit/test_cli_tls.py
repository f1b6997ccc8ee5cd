"""`faas tls`: a server's name and certificate; and how the command line comes to trust it."""

from __future__ import annotations

import json
import ssl
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from faas import settings
from faas.certificate import fingerprint
from faas.cli import own_names
from faas.errors import InvalidInput
from faas.tls_folder import TlsFolder
from tests.support.certificates import certify
from tests.support.cli import CommandLine
from tests.support.fake_api import INFO, TOKEN, FakeApi, Reply

NAME = "box.invalid"


@pytest.fixture
def made(tmp_path: Path) -> TlsFolder:
    folder = TlsFolder(tmp_path / "server" / "tls")
    folder.set_own("127.0.0.1", (), datetime.now(UTC))
    return folder


@pytest.fixture
def faas(
    made: TlsFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[CommandLine]:
    """Against an API that shows a certificate of a CA of its own; nothing here trusts it yet."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.server_file)
    with FakeApi(context) as api:
        pem = made.ca_file.read_bytes()
        api.replies["GET", "/v1/ca"] = Reply(pem)
        api.replies["GET", "/v1/info"] = Reply({**INFO, "registry": api.url.removeprefix("https://")})
        api.replies["GET", "/v2/"] = Reply({})
        api.replies["GET", "/v1/functions"] = Reply({"functions": []})
        line = CommandLine(api, tmp_path, capsys, monkeypatch)
        del line.env["FAAS_URL"], line.env["FAAS_TOKEN"]
        yield line


def config(faas: CommandLine) -> dict[str, Any]:
    return tomllib.loads((faas.home / "data" / "config.toml").read_text())


def log_in(faas: CommandLine, *options: str) -> Any:
    return faas.process("login", faas.api.url, "--token-stdin", *options, stdin=TOKEN + "\n")


def test_a_login_by_fingerprint_keeps_the_ca_for_every_command(faas: CommandLine, made: TlsFolder) -> None:
    found = fingerprint(made.ca_file.read_text())
    done = log_in(faas, "--ca-fingerprint", found.upper().replace("SHA256:", "sha256:"))
    assert done.code == 0, done.err
    kept = faas.home / "config" / "faas" / "ca.crt"
    assert kept.read_text() == made.ca_file.read_text()
    assert f"sudo install -Dm644 {kept} /etc/docker/certs.d/" in done.err
    faas("ls")
    again = log_in(faas)  # the address is known, and so is its CA
    assert again.code == 0, again.err
    faas("ls")


def test_a_login_by_file_and_faas_ca_do_the_same(faas: CommandLine, made: TlsFolder) -> None:
    assert log_in(faas, "--ca", str(made.ca_file)).code == 0
    faas("ls")
    (faas.home / "config" / "faas" / "config.toml").unlink()
    faas.env |= {"FAAS_URL": faas.api.url, "FAAS_TOKEN": TOKEN}
    faas("ls", code=5)
    faas.env["FAAS_CA"] = str(made.ca_file)
    faas("ls")
    faas.env["FAAS_CA"] = str(made.ca_file.with_name("none"))
    assert "FAAS_CA" in faas("ls", code=2).err


def test_an_untrusted_server_gets_no_token_and_the_error_says_what_to_compare(
    faas: CommandLine, made: TlsFolder
) -> None:
    done = log_in(faas)
    assert done.code == 5
    assert "is not trusted here" in done.err
    assert fingerprint(made.ca_file.read_text()) in done.err
    assert f"faas login {faas.api.url} --ca-fingerprint" in done.err
    assert [seen.headers.get("authorization") for seen in faas.api.seen] == [None]
    assert not (faas.home / "config").exists()


def test_another_ca_than_the_fingerprint_says_is_refused_before_the_token_is_asked_for(faas: CommandLine) -> None:
    other = ("--ca-fingerprint", "sha256:" + "ab" * 32)
    assert "has another CA" in faas("login", faas.api.url, *other, code=5).err  # no token is there to read
    assert "is no fingerprint" in faas("login", faas.api.url, "--ca-fingerprint", "sha256:ab", code=2).err


def test_a_ca_that_is_named_by_somebody_in_between_does_not_help_him(faas: CommandLine, tmp_path: Path) -> None:
    """He answers with the right CA, which everybody may fetch, and has no certificate of it."""
    cert, key = certify(tmp_path, "evil", "127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    with FakeApi(context) as evil:
        evil.replies["GET", "/v1/ca"] = faas.api.replies["GET", "/v1/ca"]
        pem = (tmp_path / "server" / "tls" / "ca.crt").read_text()
        options = ("--token-stdin", "--ca-fingerprint", fingerprint(pem))
        done = faas.process("login", evil.url, *options, stdin=TOKEN + "\n")
        assert (done.code, "is not trusted here" in done.err) == (5, True)
        assert [seen.headers.get("authorization") for seen in evil.seen if seen.path != "/v1/ca"] == []


def test_a_ca_of_his_own_behind_the_right_one_does_not_help_him_either(faas: CommandLine, tmp_path: Path) -> None:
    own = TlsFolder(tmp_path / "evil" / "tls")
    own.set_own("127.0.0.1", (), datetime.now(UTC))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own.server_file)
    right = (tmp_path / "server" / "tls" / "ca.crt").read_text()
    with FakeApi(context) as evil:
        evil.replies["GET", "/v1/ca"] = Reply(right.encode() + own.ca_file.read_bytes())
        options = ("--token-stdin", "--ca-fingerprint", fingerprint(right))
        done = faas.process("login", evil.url, *options, stdin=TOKEN + "\n")
        assert (done.code, "is not trusted here" in done.err) == (5, True)
        assert [seen.headers.get("authorization") for seen in evil.seen if seen.path != "/v1/ca"] == []


def test_on_its_own_host_a_server_is_found_and_believed_by_what_it_left(faas: CommandLine, made: TlsFolder) -> None:
    data = faas.home / "data"
    data.mkdir()
    (data / "admin-token").write_text(TOKEN)
    for certificate, code in ((made.server_file.read_text(), 0), (made.ca_file.read_text(), 0), ("", 5)):
        public = certificate[certificate.find("-----BEGIN CERT") :]
        (data / "server.json").write_text(json.dumps({"api": faas.api.url, "certificate": public}))
        faas("ls", code=code)


def test_a_name_without_a_scheme_is_https_beyond_this_machine(faas: CommandLine) -> None:
    done = faas.process("login", "box.invalid:8081", "--token-stdin", stdin=TOKEN + "\n")
    assert done.code == 5
    assert "https://box.invalid:8081" in done.err


def test_set_writes_its_own_settings_and_the_same_again_changes_nothing(faas: CommandLine) -> None:
    data = faas.home / "data"
    data.mkdir()
    (data / "config.toml").write_text('# ours\nlisten = "127.0.0.1:9090"\nstems = 1\napi_listen = "10.0.0.1:81"\n')
    done = faas("tls", "set", NAME)
    assert done.last_line == f"https://{NAME}:81"
    assert f"{NAME} does not resolve here" in done.err
    file = str(data / "tls" / "server.pem")
    wanted = {
        "listen": "0.0.0.0:9090", "stems": 1, "api_listen": "10.0.0.1:81", "registry_listen": "0.0.0.0:5000",
        "tls_cert": file, "tls_key": file, "public_url": f"https://{NAME}:9090",
    }  # fmt: skip
    assert config(faas) == wanted
    text = (data / "config.toml").read_text()
    assert text.startswith("# ours\n")
    again = faas("tls", "set", NAME.upper())
    assert "the certificate stays" in again.err
    assert "wrote" not in again.err
    assert (data / "config.toml").read_text() == text
    settings.load({"data": data}, {})  # a server would start with it


def test_another_name_is_taken_and_off_leaves_what_was_there_before(faas: CommandLine) -> None:
    data = faas.home / "data"
    faas("tls", "set", NAME)
    before = faas("tls", "show", "-o", "json").out
    done = faas("tls", "set", "192.0.2.7")
    assert "clients need the new ca.crt" in done.err
    assert config(faas)["public_url"] == "https://192.0.2.7:8080"
    assert json.loads(faas("tls", "show", "-o", "json").out)["ca_fingerprint"] != json.loads(before)["ca_fingerprint"]
    faas("tls", "off")
    assert config(faas) == {}
    assert (data / "tls" / "ca.pem").exists()
    assert "by hand" in faas("tls", "off", code=2).err


def test_a_listener_that_is_already_open_to_others_is_no_reason_to_refuse(faas: CommandLine) -> None:
    data = faas.home / "data"
    data.mkdir()
    (data / "config.toml").write_text('listen = "[::]:8080"\n')
    faas("tls", "set", NAME)
    assert config(faas)["listen"] == "[::]:8080"


def test_show_prints_lines_that_have_everything_in_them(faas: CommandLine) -> None:
    faas("tls", "set", NAME)
    shown = faas("tls", "show").out
    ca = (faas.home / "data" / "tls" / "ca.crt").read_text()
    assert f"faas login https://{NAME}:8081 --ca-fingerprint {fingerprint(ca)}\n" in shown
    assert f"/etc/docker/certs.d/{NAME}:5000/ca.crt && docker login {NAME}:5000 -u admin\n" in shown
    for line in ("curl --cacert $CA", "PIP_CERT=$CA", "NODE_EXTRA_CA_CERTS=$CA", "AWS_CA_BUNDLE=$CA"):
        assert line in shown
    assert faas("tls", "show", "-o", "name").out == f"{NAME}\n"


def test_a_given_certificate_that_everybody_trusts_asks_for_no_ca(faas: CommandLine, tmp_path: Path) -> None:
    chain, key = certify(tmp_path, "given", NAME)
    issued = TlsFolder(tmp_path / "elsewhere" / "tls")
    issued.set_own(NAME, (), datetime.now(UTC))
    pem = issued.server_file.read_text()
    chain.write_text(pem[pem.find("-----BEGIN CERT") : pem.rfind("-----BEGIN CERT")])  # without its root, as usual
    key.write_text(pem[: pem.find("-----BEGIN CERT")])
    faas("tls", "set", NAME, "--cert", chain, "--key", key)
    shown = faas("tls", "show").out
    assert f"faas login https://{NAME}:8081\n" in shown
    assert "ca.crt" not in shown
    assert "no certificate of an own CA" in faas("tls", "renew").err
    for options in (("--cert", chain), ("--cert", chain, "--key", key, "--new-ca")):
        faas("tls", "set", NAME, *options, code=2)


def test_without_a_certificate_show_says_how_to_get_one(faas: CommandLine) -> None:
    assert "faas tls set NAME" in faas("tls", "show", code=2).err


@pytest.mark.parametrize(
    "text", ["https://box", "box:8080", "*.box", "-a", "a..b", "1.2.3", "bücher.de", "", "a" * 254]
)
def test_what_is_no_hosts_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no host's name"):
        own_names.checked(text)


def test_names_and_addresses_are_taken_in_one_form() -> None:
    for written, name in {"Box.Example.": "box.example", "[::1]": "::1", "fd00::0:1": "fd00::1", "box": "box"}.items():
        assert own_names.checked(written) == name
