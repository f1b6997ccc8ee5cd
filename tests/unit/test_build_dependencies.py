"""Dependencies: pip and npm as they are, with indexes and wheels that the tests make themselves."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import platform
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from faas.build import requirements
from faas.build.dependencies import NeedsBuild, _run, node_layer, python_layer
from faas.build.layer import Layer
from faas.errors import InvalidInput
from faas.protocol import RuntimeBase
from tests.support.package_index import source_archive

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
BASE = RuntimeBase("python", "runtime/python:x", VERSION, "amd64", (f"manylinux_2_17_{platform.machine()}",))


def wheel(folder: Path, name: str, version: str, files: Mapping[str, str], needs: str = "", scripts: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    written = dict(files)
    written[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
        f"Requires-Dist: {needs}\n" if needs else ""
    )
    written[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if scripts:
        written[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}\n"
    written[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*written, f"{info}/RECORD"])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, content in written.items():
            archive.writestr(inside, content)
    return path


@dataclass
class Place:
    """A function's folder, and an index of files that pip is told to use."""

    root: Path
    folder: Path = field(init=False)
    index: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder, self.index = self.root / "code", self.root / "index"
        self.folder.mkdir()
        self.index.mkdir()

    def offer(self, name: str, version: str, content: str, needs: str = "") -> Path:
        page = self.index / name / "index.html"
        made = wheel(page.parent, name, version, {f"{name}.py": content}, needs)
        links = (f'<a href="{path.name}">{path.name}</a>' for path in sorted(page.parent.glob("*.whl")))
        page.write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")
        return made

    def require(self, text: str) -> None:
        (self.folder / "requirements.txt").write_text(text)

    def layer(self) -> Layer | None:
        work = self.root / "work"
        work.mkdir(exist_ok=True)
        return python_layer(self.folder, BASE, self.root / "cache", work)

    def files(self) -> dict[str, bytes]:
        layer = self.layer()
        assert layer is not None
        return contents(layer)


def contents(layer: Layer) -> dict[str, bytes]:
    with tarfile.open(layer.path) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive if entry.isfile()}
        return {name: file.read() for name, file in files.items() if file}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": "", "PIP_EXTRA_INDEX_URL": "",
        "PIP_INDEX_URL": made.index.as_uri(),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return made


# wheels/


def test_a_wheel_of_the_folder_is_used_without_any_index(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/")  # nobody answers
    monkeypatch.setenv("PIP_RETRIES", "0")
    wheel(place.folder / "wheels", "ours", "1.0", {"ours.py": "from the folder"})
    place.require("ours\n")
    assert place.files()["opt/python/ours.py"] == b"from the folder"


@pytest.mark.parametrize("other", ["", "other\n"], ids=["enough", "the index has the rest"])
def test_a_wheel_of_the_folder_wins_over_a_newer_one_of_the_index(place: Place, other: str) -> None:
    wheel(place.folder / "wheels", "ours", "1.0", {"ours.py": "from the folder"})
    place.offer("ours", "2.0", "from the index")
    place.offer("other", "1.0", "other", needs="ours>=0.5")
    place.require("ours\n" + other)
    files = place.files()
    assert files["opt/python/ours.py"] == b"from the folder"
    assert ("opt/python/other.py" in files) == bool(other)


def test_a_wheel_that_does_not_fit_what_is_required_is_said(place: Place) -> None:
    wheel(place.folder / "wheels", "ours", "1.0", {"ours.py": ""})
    place.offer("ours", "2.0", "")
    place.require("ours>=2\n")
    with pytest.raises(InvalidInput) as caught:
        place.layer()
    assert "held at that version" in caught.value.hint


# What a layer holds


def test_only_what_pip_wrote_beside_the_packages_is_left_out(place: Place) -> None:
    own = ["pkg/__init__.py", "pkg/bin/tool", "pkg/RECORD", "pkg/INSTALLER", "pkg/direct_url.json", "pkg/old.pyc",
           "bin/data.txt"]  # fmt: skip
    path = wheel(place.root, "pkg", "1.0", dict.fromkeys(own, "x"), scripts="pkg-run = pkg:main")
    place.require(f"pkg @ {path.as_uri()}\n")
    assert {name.removeprefix("opt/python/") for name in place.files()} == {
        *own, "pkg-1.0.dist-info/METADATA", "pkg-1.0.dist-info/WHEEL", "pkg-1.0.dist-info/entry_points.txt",
    }  # fmt: skip


# The cache


def test_a_layer_is_kept_and_found_again(place: Place) -> None:
    place.offer("ours", "1.0", "one")
    place.require("ours\n")
    first = place.layer()
    place.offer("ours", "2.0", "two")
    second = place.layer()
    assert first is not None
    assert second is not None
    assert (first.path, first.digest) == (second.path, second.digest)
    assert first.path.parent == place.root / "cache"


def test_a_change_in_an_included_file_makes_another_layer(place: Place) -> None:
    place.offer("ours", "1.0", "one")
    place.offer("ours", "2.0", "two")
    (place.folder / "more").mkdir()
    (place.folder / "more" / "list.txt").write_text("-c held.txt\nours\n")
    held = place.folder / "more" / "held.txt"
    place.require("# all of it\n--requirement=more/list.txt\n")
    for version, content in (("1.0", b"one"), ("2.0", b"two")):
        held.write_text(f"ours=={version}\n")
        assert place.files()["opt/python/ours.py"] == content


def test_a_local_wheel_that_changes_makes_another_layer(place: Place) -> None:
    place.require("./ours-1.0-py3-none-any.whl\n")
    for content in ("one", "two"):
        wheel(place.folder, "ours", "1.0", {"ours.py": content})
        assert place.files()["opt/python/ours.py"] == content.encode()


@pytest.mark.parametrize(
    ("text", "settled", "files"),
    [
        ("ours==1.0 ; python_version > '3'\n", True, 1),
        ("ours==1.0 \\\n    --hash=sha256:00\n--pre\n-i https://u:p@index.example/simple\n", True, 1),
        ("-rlist.txt\n-c list.txt  # again\n", True, 2),
        ("ours @ https://example.com/ours-1.0-py3-none-any.whl\n", False, 1),
        ("git+https://example.com/ours\n", False, 1),
        ("./package\n", False, 1),
        ("-e .\n", False, 1),
        ("--find-links dist\n", False, 1),
        ("-f https://example.com/wheels\n", True, 1),
        ("-r https://example.com/list.txt\n", False, 1),
        ("ours[extra]\nlist.txt.whl\n", False, 1),
    ],
)
def test_what_a_list_names_is_known_or_is_not_kept(tmp_path: Path, text: str, settled: bool, files: int) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "list.txt").write_text("other\n")
    (tmp_path / "requirements.txt").write_text(text)
    found = requirements.read(tmp_path / "requirements.txt")
    assert (found.settled, len(found.files)) == (settled, files)


def test_a_list_of_options_and_comments_names_nothing_and_a_missing_file_is_said(place: Place) -> None:
    place.require("# nothing\n--index-url https://example.com\n\n")
    assert place.layer() is None
    place.require("-r gone.txt\n")
    with pytest.raises(InvalidInput, match=r"gone\.txt"):
        place.layer()


def test_variables_that_a_list_names_reach_pip(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.offer("ours", "1.0", "one")
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("OUR_INDEX", place.index.as_uri())
    place.require("--index-url ${OUR_INDEX}\nours\n")
    assert place.files()["opt/python/ours.py"] == b"one"


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("ours==1.0 ; python_version > '3'\n", False),
        ("./ours-1.0-py3-none-any.whl[x]\n", False),
        ("ours @ https://example.com/ours-1.0-py3-none-any.whl#sha256=00\n", False),
        ("./package\n", True),
        ("./ours-1.0.tar.gz\n", True),
        ("ours @ https://example.com/ours-1.0.tar.gz\n", True),
        ("git+https://example.com/ours\n", True),
        ("-c ./package/held.txt\nours\n", False),
    ],
)
def test_what_has_to_be_built_is_seen_before_pip_runs_here(tmp_path: Path, text: str, sources: bool) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "held.txt").write_text("")
    (tmp_path / "requirements.txt").write_text(text)
    assert requirements.read(tmp_path / "requirements.txt").sources == sources


def test_a_list_saved_on_windows_is_read(place: Place) -> None:
    place.offer("ours", "1.0", "one")
    (place.folder / "requirements.txt").write_bytes(b"\xef\xbb\xbf# liste\r\nours \\\r\n  ==1.0\r\n")
    assert place.files()["opt/python/ours.py"] == b"one"


def test_a_folder_with_a_pyproject_alone_has_the_dependencies_that_it_lists(place: Place) -> None:
    place.offer("ours", "1.0", "one")
    project = place.folder / "pyproject.toml"
    project.write_text('[project]\nname = "x"\ndependencies = ["ours >= 1.0,\\n <2"]\n')
    assert place.files()["opt/python/ours.py"] == b"one"
    project.write_text("[tool.black]\n")
    assert place.layer() is None
    poetry = '[tool.poetry.dependencies]\nours = "1"\n'
    for text in ('[project]\ndynamic = ["dependencies"]\n', poetry, "[", "[project]\ndependencies = 7\n"):
        project.write_text(text)
        with pytest.raises(InvalidInput, match=r"pyproject\.toml"):
            place.layer()


def test_what_has_no_wheel_wants_a_build_and_no_code_of_it_runs_here(place: Place) -> None:
    ran = place.root / "ran"
    before = f"open({str(ran)!r}, 'w')"
    source_archive(place.folder / "wheels", "ours", "1.0", {"ours.py": ""}, before=before)
    source_archive(place.index / "other", "other", "1.0", {"other.py": ""}, before=before)
    page = place.index / "other" / "index.html"
    page.write_text('<a href="other-1.0.tar.gz">other-1.0.tar.gz</a>')
    for text in ("ours\n", "./wheels/ours-1.0.tar.gz\n", "other\n"):
        place.require(text)
        with pytest.raises(NeedsBuild):
            place.layer()
        for path in (place.folder / "wheels").glob("*"):
            path.rename(place.folder / path.name)  # only of the first round
        (place.folder / "wheels").mkdir(exist_ok=True)
    assert not ran.exists()


SETTINGS = (
    "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "no_proxy", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE", "NPM_TOKEN", "NPM_CONFIG_REGISTRY", "npm_config_registry", "PIP_INDEX_URL", "NETRC",
)  # fmt: skip


def test_pip_and_npm_see_their_own_settings_and_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*SETTINGS, "OURS", "FAAS_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    code = "import json, os; print(json.dumps(sorted(os.environ)))"
    seen = set(json.loads(_run([sys.executable, "-c", code], tmp_path, 60, "python", ["OURS"]).stdout))
    assert {*SETTINGS, "OURS"} <= seen
    assert not seen & {"FAAS_TOKEN", "AWS_SECRET_ACCESS_KEY"}


# npm


@dataclass
class NpmIndex:
    """An npm index with one package, for those who have the token."""

    token: str = "the-token"
    url: str = ""

    def __enter__(self) -> NpmIndex:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, text in (("package.json", '{"name": "ours", "version": "1.0.0"}'), ("index.js", "// ours")):
                entry = tarfile.TarInfo(f"package/{name}")
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
        tarball = buffer.getvalue()
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                dist = {"tarball": f"{index.url}ours.tgz", "integrity": integrity}
                versions = {"1.0.0": {"name": "ours", "version": "1.0.0", "dist": dist}}
                about = {"name": "ours", "dist-tags": {"latest": "1.0.0"}, "versions": versions}
                allowed = self.headers["Authorization"] == f"Bearer {index.token}"
                body = tarball if self.path.endswith(".tgz") else json.dumps(about).encode()
                self.send_response(200 if allowed else 401)
                self.send_header("Content-Length", str(len(body) if allowed else 0))
                self.end_headers()
                self.wfile.write(body if allowed else b"")

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def npm_index() -> Iterator[NpmIndex]:
    with NpmIndex() as running:
        yield running


@pytest.mark.npm
@pytest.mark.parametrize("variable", ["NPM_TOKEN", "TOKEN_OF_OUR_OWN"])
def test_npm_uses_the_projects_own_index_and_token_and_neither_reaches_the_layer(
    npm_index: NpmIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, npm_index.token)
    monkeypatch.setenv("HOME", str(tmp_path))  # npm's own cache and settings
    code = tmp_path / "code"
    code.mkdir()
    (code / "package.json").write_text('{"dependencies": {"ours": "^1.0.0"}}')
    place = npm_index.url.partition(":")[2]
    (code / ".npmrc").write_text(f"registry={npm_index.url}\n{place}:_authToken=${{{variable}}}\n")
    warnings: list[str] = []
    layer = node_layer(code, BASE, tmp_path / "cache", tmp_path, warnings.append)
    assert layer is not None
    assert [line for line in warnings if "no package-lock.json" in line] == warnings != []
    files = contents(layer)
    assert files["opt/nodejs/node_modules/ours/index.js"] == b"// ours"
    assert not any(name.endswith(".npmrc") for name in files)
    assert npm_index.token.encode() not in layer.path.read_bytes()
    assert not list((tmp_path / "cache").rglob(".npmrc"))


@pytest.mark.parametrize("wanted", ["file:../lib", "file:lib.tgz", "link:../lib", "../lib", "~/lib"])
def test_a_dependency_of_this_machine_is_refused_by_name(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "package.json").write_text(json.dumps({"dependencies": {"lib": wanted, "ms": "~2.1.3"}}))
    with pytest.raises(InvalidInput, match=f"lib is {wanted}"):
        node_layer(tmp_path, BASE, tmp_path / "cache", tmp_path)


@pytest.mark.parametrize("text", ["[]", "{", '{"dependencies": 7}'])
def test_a_package_json_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "package.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"package\.json"):
        node_layer(tmp_path, BASE, tmp_path / "cache", tmp_path)
