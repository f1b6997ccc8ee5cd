"""A real server in a process of its own, on ports that the kernel chooses, with a data folder of its own."""

from __future__ import annotations

import atexit
import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import forked

READY_SECONDS = 60.0
STOP_SECONDS = 40.0


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


class RunningServer:
    """`faas serve` on `data`. Use it as a context manager; `kill` is -9, `stop` is SIGTERM.

    `seeded`: a new one has the Python runtime base already, with the `oci` driver. `whole`: it and its commands begin
    as a user's do, with a new interpreter, for those who look at the process itself or measure; else all is forked off
    one that has read the modules (`forked`).
    """

    def __init__(
        self,
        data: Path,
        *flags: str,
        env: Mapping[str, str] | None = None,
        seeded: bool = True,
        whole: bool = False,
    ) -> None:
        self.data = data
        self.seeded = seeded and "oci" in flags
        self.flags = flags
        self.env = env or {}
        self.whole = whole
        self.process: subprocess.Popen[bytes] | forked.Forked | None = None
        self.public = self.api = self.registry = self.token = ""

    def start(self) -> RunningServer:
        self.data.mkdir(parents=True, exist_ok=True)
        self.server_file.unlink(missing_ok=True)
        if self.seeded and not (self.data / "registry.db").exists():
            _plant(self.data)
        listeners = ["--listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0", "--registry-listen", "127.0.0.1:0"]
        words = ["serve", "--data", str(self.data), *listeners, *self.flags]
        env = {**os.environ, **self.env}
        with open(self.log_file, "ab") as log:
            if self.whole:
                command = [sys.executable, "-m", "faas.cli", *words]
                streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
                self.process = subprocess.Popen(command, env=env, start_new_session=True, **streams)
            else:
                self.process = forked.Forked(words, env, log, log)
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.log_tail()}")
            if self.server_file.exists():
                addresses = json.loads(self.server_file.read_text())
                self.public, self.api, self.registry = (addresses[k] for k in ("public", "api", "registry"))
                self.token = (self.data / "admin-token").read_text().strip()
                if self.get("/readyz", api=True).status == 200:
                    return self
            time.sleep(0.02)
        raise RuntimeError(f"the server was not ready in {READY_SECONDS} s: {self.log_tail()}")

    @property
    def id(self) -> str:
        """As it stands in cgroups, interfaces and firewall tables (`Settings.server_id`)."""
        return hashlib.sha256(str(self.data).encode()).hexdigest()[:8]

    @property
    def server_file(self) -> Path:
        return self.data / "server.json"

    @property
    def log_file(self) -> Path:
        return self.data / "test-server.log"

    def log_tail(self) -> str:
        return self.log_file.read_text(errors="replace")[-3000:]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, as a crash."""
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
                raise RuntimeError(f"SIGTERM did not stop the server: {self.log_tail()}") from None
        return self.process.wait()

    def __enter__(self) -> RunningServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        api: bool = False,
        token: str | None = None,
        timeout: float = 60,
    ) -> Answer:
        """One request to the public listener, or with `api` to the API with the administrator's token."""
        sent = dict(headers or {})
        if api or token:
            sent["Authorization"] = f"Bearer {token or self.token}"
        request = urllib.request.Request((self.api if api else self.public) + path, body, sent, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())
        except urllib.error.URLError as error:
            return Answer(0, {}, str(error.reason).encode())

    def send(self, method: str, path: str, body: object) -> Answer:
        """JSON to the API, with the administrator's token."""
        sent = {"Content-Type": "application/json"}
        return self.request(method, path, json.dumps(body).encode(), sent, api=True)

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def faas(self, *args: str | Path, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """The command line against this server."""
        env = {**os.environ, "FAAS_URL": self.api, "FAAS_TOKEN": self.token, "NO_COLOR": "1"}
        words = [str(arg) for arg in args]
        # Which CAs are trusted, a library reads as it is imported: of this environment only a new interpreter's knows.
        if self.whole or "SSL_CERT_FILE" in env:
            command = [sys.executable, "-m", "faas.cli", *words]
            done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
        else:
            done = forked.run(words, env, timeout)
        if check and done.returncode:
            raise RuntimeError(f"faas {' '.join(map(str, args))}: exit {done.returncode}\n{done.stderr}")
        return done

    def push_code(self, folder: Path, name: str, code: str, toml: str = "") -> str:
        """Push a public Python function with one file; `toml` may open tables. Returns its URL."""
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        (target / "app.py").write_text(code)
        (target / "faas.toml").write_text(
            f'name = "{name}"\nruntime = "python"\nhandler = "app.handler"\npublic = true\n{toml}\n'
        )
        return self.faas("push", target).stdout.strip().splitlines()[-1]


@functools.cache
def _with_base() -> Path:
    """The data folder of a server that has built the Python runtime base: each would build the same bytes. Of the parts
    of `./tests/run` one makes it for all, and the run removes it."""
    shared = os.environ.get("FAAS_TESTS_SHARED")
    folder = Path(shared) / "seed" if shared else Path(tempfile.mkdtemp(prefix="faas-seed-"))
    folder.mkdir(exist_ok=True)
    if not shared:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _build_base(folder / "data")
            (folder / "done").touch()
    return folder / "data"


def _build_base(data: Path) -> None:
    shutil.rmtree(data, ignore_errors=True)  # what another part has begun, and did not end
    with RunningServer(data, "--driver", "oci", "--stems", "0", seeded=False) as server:
        built = server.request("PUT", "/v1/runtimes/python", b"", api=True, timeout=120)
        assert built.status == 200, built.text


def _plant(data: Path) -> None:
    shutil.copytree(_with_base() / "blobs", data / "blobs")
    shutil.copy(_with_base() / "registry.db", data)
