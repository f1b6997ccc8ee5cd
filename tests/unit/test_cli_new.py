"""`faas new`: every template makes a folder whose faas.toml is valid and whose code runs."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faas import spec_file
from faas.cli.new import PLACEHOLDER, RUNTIMES, TEMPLATES
from tests.support.cli import CommandLine
from tests.support.fake_api import FakeApi

EVENT = {
    "rawPath": "/x",
    "queryStringParameters": {"name": "Ada"},
    "requestContext": {"http": {"method": "POST"}},
    "body": "one\n",
}


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    monkeypatch.chdir(tmp_path)
    with FakeApi() as api:
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_template_is_complete_public_and_valid(faas: CommandLine, tmp_path: Path, runtime: str) -> None:
    done = faas("new", "greet", "--runtime", runtime)
    assert done.out == "greet\n"
    assert "faas push greet" in done.err
    folder = tmp_path / "greet"
    made = spec_file.parse(spec_file.read(folder / "faas.toml"))
    assert (made.name, made.public) == ("greet", True)
    names = {path.name for path in folder.iterdir()}
    assert {path.name.removesuffix(".in") for path in (TEMPLATES / runtime).iterdir()} == names
    for path in folder.iterdir():
        assert PLACEHOLDER not in path.read_text()
        if path.suffix == ".py":
            compile(path.read_text(), path, "exec")
    code = (made.handler or made.app).partition(":")[0].partition(".")[0]
    assert not code or any(path.stem == code for path in folder.iterdir())
    assert made.runtime or (folder / "Dockerfile").exists()


def test_all_templates_are_offered() -> None:
    assert {path.name for path in TEMPLATES.iterdir()} == set(RUNTIMES)


def test_what_is_there_is_not_touched_and_names_are_checked(faas: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "app.py").write_text("mine")
    assert "is there already" in faas("new", "taken", code=1).err
    assert (tmp_path / "taken" / "app.py").read_text() == "mine"
    assert "no function name" in faas("new", "No_Good", code=2).err
    faas("new", "deep/down", code=0)
    assert spec_file.read(tmp_path / "deep/down/faas.toml").data["name"] == "down"


def run_python(folder: Path, script: str) -> Any:
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_python_cron_and_shell_handlers_answer(faas: CommandLine, tmp_path: Path) -> None:
    for runtime in ("python", "cron", "shell"):
        faas("new", runtime, "--runtime", runtime)
    script = f"import app, json; print(json.dumps(app.handler({EVENT!r}, None)))"
    assert json.loads(run_python(tmp_path / "python", script)["body"]) == {"hello": "Ada"}
    assert run_python(tmp_path / "cron", script) == {"done": True}
    shell = tmp_path / "shell"
    (shell / "app.py").write_text((shell / "app.py").read_text().replace("/var/task/", f"{shell}/"))
    assert run_python(shell, script)["body"] == "hello from the shell: POST /x\nyou sent: one\n"
    assert run_python(shell, "import app, json; print(json.dumps(app.handler({}, None)))")["statusCode"] == 200


def test_the_web_template_is_an_asgi_application(faas: CommandLine, tmp_path: Path) -> None:
    faas("new", "web", "--runtime", "web")
    scope: dict[str, Any] = {}
    exec(compile((tmp_path / "web" / "main.py").read_text(), "main.py", "exec"), scope)
    sent: list[dict[str, Any]] = []

    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await scope["app"]({"type": "http", "path": "/here"}, receive, send)

    asyncio.run(ask())
    assert (sent[0]["status"], sent[1]["body"]) == (200, b"hello from /here\n")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_node_handler_answers(faas: CommandLine, tmp_path: Path) -> None:
    faas("new", "greet", "--runtime", "node")
    script = f"require('./index.js').handler({json.dumps(EVENT)}).then((a) => console.log(JSON.stringify(a)))"
    done = subprocess.run(
        ["node", "-e", script], cwd=tmp_path / "greet", capture_output=True, text=True, timeout=30, check=True
    )
    assert json.loads(json.loads(done.stdout.splitlines()[-1])["body"]) == {"hello": "Ada"}


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_program_in_c_polls_the_runtime_api(faas: CommandLine, tmp_path: Path) -> None:
    faas("new", "native", "--runtime", "provided")
    subprocess.run(["make", "-s", "-C", tmp_path / "native", "CFLAGS="], check=True, timeout=60)
    answers: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    request = b""
                    while b"\r\n\r\n" not in request or (request.startswith(b"POST") and not request.endswith(b"}")):
                        request += connection.recv(65_536)
                    answers.append(request)
                    body = b'{"big": "%s"}' % (b"x" * 100_000) if request.startswith(b"GET") else b""
                    head = b"HTTP/1.1 200 OK\r\nlambda-runtime-aws-request-id: r-1\r\nContent-Length: %d\r\n\r\n"
                    connection.sendall(head % len(body) + body)

        thread = threading.Thread(target=serve)
        thread.start()
        process = subprocess.Popen(
            [tmp_path / "native" / "bootstrap"],
            env={"AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{listener.getsockname()[1]}"},
            stderr=subprocess.PIPE,
        )
        thread.join(20)
    _, err = process.communicate(timeout=20)  # the API is gone: it ends
    assert answers[0].startswith(b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\n")
    assert answers[1].startswith(b"POST /2018-06-01/runtime/invocation/r-1/response HTTP/1.1\r\n")
    assert answers[1].endswith(b'{"statusCode": 200, "body": "hello from C\\n"}')
    assert b"an event of 100011 bytes" in err
