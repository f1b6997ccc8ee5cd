"""The indexes of this machine, for a sandbox that knows none: pages and files are fetched here, with what pip here is
told of addresses, credentials, proxies and certificates, and passed on without any of it.

The sandbox names a project or a number, never an address: it gets what pip here could get, and nothing else.
Everything blocks.
"""

from __future__ import annotations

import hashlib
import html.parser
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

import requests
import urllib3
from requests.auth import AuthBase, HTTPBasicAuth

from faas.build.pip_settings import PipSettings
from faas.errors import InvalidInput, Unavailable

PAGE = "application/vnd.pypi.simple.v1+json"  # PEP 691
_ACCEPT = f"{PAGE}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
PAGE_BYTES = 128 << 20
FILE_BYTES = 1 << 30
CHUNK = 1 << 18
_PROJECT = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")  # PEP 503, normalized
_PATH = re.compile(r"/(?:i/(\d{1,3})/([^/]{1,200})|l/(\d{1,3})|f/(\d{1,7})/[^/]+)/?")
_ARCHIVES = (".whl", ".tar.gz", ".zip", ".tar.bz2", ".tar.xz", ".tgz")


class _Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an ASK gets; `path` is a file with the content."""

    status: int
    content_type: str
    path: Path
    sha256: str = ""


@dataclass
class Relay:
    """`work` holds what was fetched. Not to be used by two threads at once."""

    settings: PipSettings
    work: Path
    folder: Path = Path()  # where relative paths of indexes begin
    passed: dict[str, Path] = field(default_factory=dict)  # digests of files that went through → where they are
    refusals: dict[str, None] = field(default_factory=dict)  # what indexes answered instead, once each
    _numbers: dict[str, int] = field(default_factory=dict)
    _files: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self._session = requests.Session()  # reads proxies and netrc as pip's own does
        if self.settings.proxy:
            self._session.proxies = {"http": self.settings.proxy, "https": self.settings.proxy}
        if self.settings.client_cert:
            self._session.cert = self.settings.client_cert

    def close(self) -> None:
        self._session.close()

    def arguments(self, base: str) -> list[str]:
        """pip's options for the indexes as the sandbox sees them, below `base`."""
        indexes = [f"{base}/i/{number}" for number in range(len(self.settings.indexes))]
        words = ["--index-url", indexes[0]] if indexes else ["--no-index"]
        for more in indexes[1:]:
            words += ["--extra-index-url", more]
        for number in range(len(self.settings.links)):
            words += ["--find-links", f"{base}/l/{number}"]
        return words

    def place(self, url: str) -> str:
        """The path of the file at `url`, as the sandbox sees it; its fragment (a hash) stays."""
        bare, fragment = urldefrag(url)
        if bare not in self._numbers:
            self._numbers[bare] = len(self._files)
            self._files.append(bare)
        name = quote(unquote(urlsplit(bare).path.rpartition("/")[2]) or "file")
        return f"/f/{self._numbers[bare]}/{name}" + (f"#{fragment}" if fragment else "")

    def fetch(self, path: str) -> Fetched:
        """What the sandbox asks for. Raises Unavailable where the index does not answer."""
        try:
            return self._fetch(path)
        except _Refused as refused:
            return self._text(refused.status, "")
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Unavailable(f"the package index does not answer: {_without_login(str(error))}") from None
        except OSError as error:
            raise Unavailable(f"the package index cannot be read: {error.strerror}") from None

    def _fetch(self, path: str) -> Fetched:
        asked = _PATH.fullmatch(urlsplit(path).path)
        if asked is None:
            raise _Refused(404)
        if asked[4] is not None:
            return self._file(int(asked[4]))
        indexes = self.settings.links if asked[3] is not None else self.settings.indexes
        number, project = int(asked[3] or asked[1]), unquote(asked[2] or "")
        if number >= len(indexes) or (project and not _PROJECT.fullmatch(project)):
            raise _Refused(404)
        url = indexes[number]
        return self._page(f"{url.rstrip('/')}/{project}/" if project else url, project)

    def _page(self, url: str, project: str) -> Fetched:
        files = [row | {"url": self.place(row["url"])} for row in self._listed(url)]
        page = {"meta": {"api-version": "1.0"}, "name": project, "files": files}
        return self._text(200, json.dumps(page), PAGE)

    def _listed(self, url: str) -> list[dict[str, Any]]:
        """The files that a page of an index names, with whole addresses."""
        if not url.startswith(("http://", "https://")):
            return list(_in_folder(self.folder / _local(url)))
        with self._get(url, _ACCEPT) as answer:
            raw = b"".join(_bounded(answer.iter_content(CHUNK), PAGE_BYTES))
            kind, here = answer.headers.get("Content-Type", ""), answer.url
        try:
            if kind.startswith(PAGE):
                return _elsewhere(_row(urljoin(here, row["url"]), row) for row in json.loads(raw)["files"])
        except (ValueError, KeyError, TypeError):
            raise _Refused(404) from None
        return _elsewhere(_anchors(raw.decode("utf-8", "replace"), here))

    def _file(self, number: int) -> Fetched:
        if number >= len(self._files):
            raise _Refused(404)
        url, target, digest = self._files[number], self.work / f"file-{number}", hashlib.sha256()
        with target.open("wb") as file:
            for chunk in _bounded(self._chunks(url), FILE_BYTES):
                file.write(chunk)
                digest.update(chunk)
        self.passed[digest.hexdigest()] = target
        return Fetched(200, "application/octet-stream", target, digest.hexdigest())

    def _chunks(self, url: str) -> Iterator[bytes]:
        if not url.startswith(("http://", "https://")):
            with _local(url).open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
            return
        with self._get(url, "*/*") as answer:
            yield from answer.raw.stream(CHUNK, decode_content=False)  # a .tar.gz is what it is, not an encoding

    def _get(self, url: str, accept: str) -> requests.Response:
        bare, login = _split(url)
        host = urlsplit(bare)
        login = login or self._login_of(host.netloc)
        trusted = {host.hostname, host.netloc} & self.settings.trusted
        auth: AuthBase | None = HTTPBasicAuth(*login) if login else None
        headers = {"Accept": accept, "Accept-Encoding": "identity", "User-Agent": "faas"}
        verify = False if trusted else self.settings.cert or None  # None: what the environment says
        with warnings.catch_warnings():
            if trusted:
                warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
            answer = self._session.get(
                bare, auth=auth, headers=headers, stream=True, timeout=self.settings.seconds, verify=verify
            )
        if answer.status_code >= 400:
            answer.close()
            if answer.status_code != 404:
                self.refusals[f"{host.hostname} answered {answer.status_code}"] = None
            raise _Refused(answer.status_code)
        return answer

    def _login_of(self, place: str) -> tuple[str, str] | None:
        """The credentials of an index hold for the files that it names on its own host, as with pip."""
        known = (_split(url) for url in (*self.settings.indexes, *self.settings.links))
        return next((login for url, login in known if login and urlsplit(url).netloc == place), None)

    def _text(self, status: int, text: str, kind: str = "text/plain") -> Fetched:
        target = self.work / "page"
        target.write_text(text, encoding="utf-8")
        return Fetched(status, kind, target)


def _split(url: str) -> tuple[str, tuple[str, str] | None]:
    """An address without its credentials, and these."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return bare, (unquote(parts.username), unquote(parts.password or ""))


def _without_login(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//", text)[:300]


def _local(url: str) -> Path:
    return Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else Path(url)


def _elsewhere(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A page from elsewhere names no file of this machine."""
    return [row for row in rows if row["url"].startswith(("http://", "https://"))]


def _in_folder(place: Path) -> Iterator[dict[str, Any]]:
    """`file:` indexes and folders of archives, as pip reads them."""
    if (page := place / "index.html").is_file() or (page := place).is_file():
        yield from _anchors(page.read_text(encoding="utf-8", errors="replace"), page.absolute().as_uri())
    elif place.is_dir():
        for path in sorted(place.iterdir()):
            if path.name.endswith(_ARCHIVES):
                yield _row(path.absolute().as_uri(), {"filename": path.name})
    else:
        raise _Refused(404)


def _row(url: str, said: dict[str, Any]) -> dict[str, Any]:
    kept = {key: said[key] for key in ("hashes", "requires-python", "yanked") if said.get(key)}
    return {"url": url, "filename": str(said.get("filename") or url.rpartition("/")[2]), "hashes": {}, **kept}


class _Anchors(html.parser.HTMLParser):
    """PEP 503."""

    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.rows: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if tag == "base" and not self.base:
            self.base = said.get("href", "")
        elif tag == "a" and said.get("href"):
            self.rows.append(said)


def _anchors(text: str, here: str) -> Iterator[dict[str, Any]]:
    page = _Anchors()
    page.feed(text)
    for said in page.rows:
        url, fragment = urldefrag(urljoin(urljoin(here, page.base), said["href"]))
        name = unquote(urlsplit(url).path.rpartition("/")[2])
        if not name.endswith(_ARCHIVES):
            continue
        algorithm, _, digest = fragment.partition("=")
        hashes = {algorithm: digest} if digest and algorithm in hashlib.algorithms_guaranteed else {}
        yanked = (said["data-yanked"] or True) if "data-yanked" in said else False
        wanted = {"filename": name, "hashes": hashes, "yanked": yanked}
        yield _row(url, wanted | {"requires-python": said.get("data-requires-python", "")})


def _bounded(chunks: Iterator[bytes], limit: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise InvalidInput(f"a file of the index has more than {limit >> 20} MB")
        yield chunk
