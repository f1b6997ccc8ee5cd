"""A package index of a test's own: PEP 503 pages and files over http or https, for those who have the password."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import ssl
import tarfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# A build backend in the source archive itself: nothing has to be fetched for it.
BACKEND = """
import base64, hashlib, io, os, pathlib, subprocess, sys, sysconfig, zipfile

NAME, VERSION, C = {name!r}, {version!r}, {c!r}
INFO = f"{{NAME}}-{{VERSION}}.dist-info"

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    {before}
    files = {{p.name: p.read_bytes() for p in pathlib.Path(".").glob("*.py") if p.name != "backend.py"}}
    tag = "py3-none-any"
    if C:
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        command = ["gcc", "-shared", "-fPIC", "-I" + sysconfig.get_path("include"), C, "-o", "out.so"]
        subprocess.run(command, check=True)
        files[C.removesuffix(".c") + suffix] = pathlib.Path("out.so").read_bytes()
        version = f"cp{{sys.version_info[0]}}{{sys.version_info[1]}}"
        tag = f"{{version}}-{{version}}-linux_{{os.uname().machine}}"
    files[f"{{INFO}}/METADATA"] = f"Metadata-Version: 2.1\\nName: {{NAME}}\\nVersion: {{VERSION}}\\n{needs}".encode()
    lines = ("Wheel-Version: 1.0", "Generator: test", "Root-Is-Purelib: true", f"Tag: {{tag}}", "")
    files[f"{{INFO}}/WHEEL"] = "\\n".join(lines).encode()
    files[f"{{INFO}}/RECORD"] = "".join(f"{{path}},,\\n" for path in [*files, f"{{INFO}}/RECORD"]).encode()
    name = f"{{NAME}}-{{VERSION}}-{{tag}}.whl"
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / name, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return name
"""
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def source_files(
    name: str, version: str, files: Mapping[str, str], *, c: str = "", before: str = "pass", needs: str = ""
) -> dict[str, str]:
    """A package's sources. `c`: a file that is compiled; `before`: what runs first when it is built."""
    wanted = f"Requires-Dist: {needs}\\n" if needs else ""
    backend = BACKEND.format(name=name, version=version, c=c, before=before, needs=wanted)
    return {"PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "pyproject.toml": PYPROJECT,
            "backend.py": backend, **files}  # fmt: skip


def source_archive(folder: Path, name: str, version: str, files: Mapping[str, str], **options: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inside, text in source_files(name, version, files, **options).items():
            entry = tarfile.TarInfo(f"{name}-{version}/{inside}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


@dataclass
class PackageIndex:
    """`folder` holds `NAME/` folders of files. Use it as a context manager. `name`: of the address where it listens."""

    folder: Path
    login: tuple[str, str] | None = None
    certificate: tuple[Path, Path] | None = None  # and its key
    asked: list[str] = field(default_factory=list)
    port: int = 0
    address: str = "127.0.0.1"
    name: str = "localhost"

    def __enter__(self) -> PackageIndex:
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                status, kind, body = index._answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                if status == 401:
                    self.send_header("WWW-Authenticate", 'Basic realm="index"')
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer((self.address, 0), Handler)
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def host(self) -> str:
        return f"{self.name}:{self.port}"

    @property
    def url(self) -> str:
        """Without credentials."""
        return f"{'https' if self.certificate else 'http'}://{self.host}/simple/"

    @property
    def url_with_login(self) -> str:
        assert self.login is not None
        return self.url.replace("://", f"://{':'.join(self.login)}@")

    def _answer(self, path: str, authorization: str) -> tuple[int, str, bytes]:
        if self.login is not None:
            wanted = "Basic " + base64.b64encode(":".join(self.login).encode()).decode()
            if authorization != wanted:
                return 401, "text/plain", b""
        parts = path.strip("/").split("/")
        folder = self.folder / parts[1] if len(parts) > 1 else self.folder
        if parts[0] == "simple" and len(parts) == 2 and folder.is_dir():
            links = (
                f'<a href="../../files/{parts[1]}/{p.name}#sha256={hashlib.sha256(p.read_bytes()).hexdigest()}">x</a>'
                for p in sorted(folder.iterdir())
            )
            return 200, "text/html", f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
        if parts[0] == "files" and len(parts) == 3 and (file := folder / parts[2]).is_file():
            return 200, "application/octet-stream", file.read_bytes()
        return 404, "text/plain", b""
