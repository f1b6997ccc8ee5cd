"""What the gateway is compared with: nginx in front of the same program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.client import free_port, poll
from tests.support.processes import children

CONFIGURATION = """
user root; worker_processes 1; daemon off; pid {work}/nginx.pid; error_log {work}/errors;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 100000000; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy;
    fastcgi_temp_path {work}/fastcgi; uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    upstream function {{ server 127.0.0.1:{behind}; keepalive 128; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{front};
        location / {{ proxy_pass http://function; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """`url` is its own, `behind` the program's without it."""

    url: str
    behind: str
    worker_pid: int
    program_pid: int


@contextmanager
def nginx_before(program: Path, work: Path) -> Iterator[Nginx]:
    """One worker, no access log, connections to `program`, which listens on PORT, kept."""
    behind, front = free_port(), free_port()
    (work / "nginx.conf").write_text(CONFIGURATION.format(work=work, behind=behind, front=front))
    with (
        started(program, PORT=str(behind)) as function,
        started("nginx", "-e", work / "errors", "-c", work / "nginx.conf") as nginx,
    ):
        poll(("127.0.0.1", front))
        [worker] = children(nginx.pid)
        yield Nginx(f"http://127.0.0.1:{front}/", f"http://127.0.0.1:{behind}/", worker, function.pid)


@contextmanager
def started(*words: str | Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(words, env={**os.environ, **env}, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)
