"""Indexes as the sandbox of a build sees them: pip's settings of this machine are honoured here and stay here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from faas.build import messages, pip_settings
from faas.build.pip_settings import PipSettings
from faas.build.relay import Relay
from faas.build.wanted import Reader
from faas.errors import InvalidInput, Unavailable
from tests.support.certificates import certify
from tests.support.package_index import PackageIndex, source_archive

LOGIN = ("someone@example.com", "CANARY:p@ss")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    source_archive(tmp_path / "index" / "ours", "ours", "1.0", {"ours.py": ""})
    return tmp_path / "index"


@pytest.fixture
def relay(tmp_path: Path) -> Callable[[PipSettings], Relay]:
    return lambda settings: Relay(settings, tmp_path / "relay")


def archive(relay: Relay, path: str = "/i/0/ours/") -> bytes:
    """The one file that a page names, through the relay."""
    page = relay.fetch(path)
    assert page.status == 200
    text = page.path.read_text()
    assert "CANARY" not in text
    assert "localhost" not in text
    (row,) = json.loads(text)["files"]
    assert row["filename"] == "ours-1.0.tar.gz"
    got = relay.fetch(row["url"].partition("#")[0])
    assert relay.passed[got.sha256] == got.path
    assert row["hashes"] in ({}, {"sha256": got.sha256})
    return got.path.read_bytes()


# How an index is reached


def test_a_login_in_an_indexs_address_is_used_for_its_pages_and_files_and_passed_on_to_nobody(
    index: Path, relay: Callable[[PipSettings], Relay]
) -> None:
    with PackageIndex(index, login=LOGIN) as running:
        url = running.url.replace("://", "://someone%40example.com:CANARY%3Ap%40ss@")
        made = relay(PipSettings(index=url))
        assert archive(made) == (index / "ours" / "ours-1.0.tar.gz").read_bytes()
        assert made.arguments("http://inside") == ["--index-url", "http://inside/i/0"]


def test_a_login_of_netrc_is_used_where_the_address_has_none(
    index: Path, relay: Callable[[PipSettings], Relay], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with PackageIndex(index, login=("me", "secret")) as running:
        archive(relay(PipSettings(index=running.url)))


@pytest.mark.parametrize("how", ["cert", "REQUESTS_CA_BUNDLE", "trusted-host"])
def test_an_authority_of_ones_own_is_believed_where_pip_is_told_to(
    index: Path, relay: Callable[[PipSettings], Relay], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    files = certify(tmp_path, "index", "localhost")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    with PackageIndex(index, certificate=files) as running:
        with pytest.raises(Unavailable, match="does not answer"):
            relay(PipSettings(index=running.url)).fetch("/i/0/ours/")
        settings = PipSettings(index=running.url)
        if how == "cert":
            settings.cert = str(files[0])
        elif how == "trusted-host":
            settings.trusted.add("localhost")
        else:
            monkeypatch.setenv(how, str(files[0]))
        archive(relay(settings))


@pytest.mark.parametrize("variable", ["", "http_proxy"], ids=["setting", "variable"])
def test_a_proxy_is_asked_for_what_is_elsewhere(
    index: Path, relay: Callable[[PipSettings], Relay], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with PackageIndex(index) as proxy:
        address = f"http://{proxy.host}"
        if variable:
            monkeypatch.setenv(variable, address)
        settings = PipSettings(index="http://index.invalid/simple", proxy="" if variable else address)
        assert relay(settings).fetch("/i/0/ours/").status == 404
        assert proxy.asked == ["http://index.invalid/simple/ours/"]


def test_a_folder_is_an_index_too_and_find_links_are_pages(index: Path, relay: Callable[[PipSettings], Relay]) -> None:
    made = relay(PipSettings(index=index.as_uri(), links=[str(index / "ours"), "index/ours"]))
    made.folder = index.parent
    assert (
        archive(made)
        == archive(made, "/l/0")
        == archive(made, "/l/1")
        == (index / "ours" / "ours-1.0.tar.gz").read_bytes()
    )


def test_a_page_from_elsewhere_names_no_file_of_this_machine(
    index: Path, relay: Callable[[PipSettings], Relay], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.tar.gz"
    secret.write_text("secret")
    page = f'<a href="{secret.as_uri()}">x</a><a href="ours-1.0.tar.gz">x</a>'
    (index / "files").mkdir()
    (index / "files" / "page.html").write_text(page)
    with PackageIndex(index) as running:
        made = relay(PipSettings(links=[running.url.replace("/simple/", "/files/files/page.html")]))
        rows = json.loads(made.fetch("/l/0").path.read_text())["files"]
    assert [row["filename"] for row in rows] == ["ours-1.0.tar.gz"]


def test_what_an_index_refuses_is_passed_on_as_such_and_remembered(
    index: Path, relay: Callable[[PipSettings], Relay]
) -> None:
    with PackageIndex(index, login=LOGIN) as running:
        made = relay(PipSettings(index=running.url, extra=[index.as_uri()]))
        assert made.fetch("/i/0/ours/").status == 401
        assert made.fetch("/i/1/ours/").status == 200
        assert list(made.refusals) == ["localhost answered 401"]


def test_an_index_that_does_not_answer_is_said_without_its_login(relay: Callable[[PipSettings], Relay]) -> None:
    with pytest.raises(Unavailable) as caught:
        relay(PipSettings(index="http://me:CANARY@127.0.0.1:1/simple")).fetch("/i/0/ours/")
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    ["/", "/i/1/ours/", "/i/0/../../secret/", "/i/0/..%2f..%2fsecret/", "/i/0/http:%2f%2f127.0.0.1/", "/f/7/x.whl",
     "/l/0", "/i/0/OURS/", "http://127.0.0.1/i/0/ours/../x", "/i/-1/ours/"],
)  # fmt: skip
def test_the_sandbox_gets_what_the_index_has_and_no_other_address(
    index: Path, relay: Callable[[PipSettings], Relay], path: str
) -> None:
    assert relay(PipSettings(index=index.as_uri())).fetch(path).status == 404


# What pip is told


def test_pips_files_and_variables_are_read_by_pip_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://u:p@one.example/simple\nextra-index-url =\n    https://two.example/a b\n"
        "    https://three.example\ncert = /one.pem\n[install]\ncert = /two.pem\ntrusted-host = one.example\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT", "PIP_FIND_LINKS", "PIP_DEFAULT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_BINARY", "x,y")
    monkeypatch.setenv("PIP_PROXY", "http://proxy.example")
    said = pip_settings.ask(tmp_path, (), ("PIP_",))
    assert said.indexes == ["https://u:p@one.example/simple", "https://two.example/a", "b", "https://three.example"]
    assert (said.cert, said.proxy, said.trusted) == ("/two.pem", "http://proxy.example", {"one.example"})
    assert said.arguments == ["--no-binary", "x,y"]


def test_what_pip_says_is_taken_in_pips_order() -> None:
    rows = [":env:.index-url='https://env'", "global.index-url='https://global'", "install.index-url='https://install'",
            "global.no-index='false'", "download.cert='x'", "global.timeout='7'"]  # fmt: skip
    said = pip_settings.parse(rows)
    assert (said.index, said.no_index, said.cert, said.seconds) == ("https://env", False, "", 7.0)
    assert pip_settings.parse([]).indexes == [pip_settings.PYPI]


def read(folder: Path, text: str, relay: Relay) -> Reader:
    (folder / "requirements.txt").write_text(text)
    work = folder / "work"
    work.mkdir()
    reader = Reader(folder, relay, {"TOKEN": "CANARY"}, work)
    reader.read(folder / "requirements.txt")
    return reader


def test_a_list_goes_to_the_server_without_addresses_of_this_machine(
    tmp_path: Path, relay: Callable[[PipSettings], Relay]
) -> None:
    (tmp_path / "more.txt").write_text("held<2\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "setup.py").write_text("")
    (tmp_path / "a-1.tar.gz").write_bytes(b"")
    made = relay(PipSettings())
    text = """
--index-url https://u:CANARY@one.example
--extra-index-url=https://two.example
-f links
--pre
-c more.txt
plain[x]>=1 ; python_version > '3'
url @ https://${TOKEN}@x.example/url-1.tar.gz#sha256=00 ; os_name=='posix'
./lib[y]
./a-1.tar.gz
"""
    wanted = read(tmp_path, text, made).wanted
    assert wanted.requirements == [
        "--pre",
        "plain[x]>=1 ; python_version > '3'",
        f"url @ {messages.INDEX}/f/0/url-1.tar.gz#sha256=00 ; os_name=='posix'",
        f"{messages.INPUT}/sources/0/lib.tar.gz[y]",
        f"{messages.INPUT}/sources/1/a-1.tar.gz",
    ]
    assert wanted.constraints == ["held<2"]
    assert set(wanted.files) == {"sources/0/lib.tar.gz", "sources/1/a-1.tar.gz"}
    assert made.settings.indexes == ["https://u:CANARY@one.example", "https://two.example"]
    assert made.settings.links == ["links"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-e .", "-e"),
        ("--editable=./lib", "--editable"),
        ("-e git+https://u:CANARY@example.com/r", "is not offered"),
        ("git+https://u:CANARY@example.com/r@v1", "there is no git"),
        ("x @ git+https://CANARY@example.com/r", "there is no git"),
        ("-r https://CANARY@example.com/list.txt", "a list is a file"),
        ("--log /tmp/x", "not offered"),
        ("./gone", "no such file"),
    ],
)
def test_what_cannot_be_built_there_is_refused_in_words(
    tmp_path: Path, relay: Callable[[PipSettings], Relay], line: str, words: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, line + "\n", relay(PipSettings()))
    assert words in str(caught.value)
    assert "CANARY" not in str(caught.value) + caught.value.hint
