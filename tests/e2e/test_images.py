"""Images and folders as people have them already run as they are: nginx, OpenFaaS, AWS Lambda, npm, wheels, WSGI."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import layouts
from tests.support.layouts import Layout
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

BIG = os.urandom(1 << 20)
PAGE = b"<h1>Welcome to nginx!</h1>\n"


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=100, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return str(done.stdout)


def described(server: RunningServer, name: str) -> dict[str, object]:
    return dict(server.get(f"/v1/functions/{name}", api=True).json())


# nginx


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return layouts.nginx(tmp_path_factory.mktemp("nginx") / "layout", {"index.html": PAGE, "big.bin": BIG})


@pytest.mark.nginx
def test_nginx_as_docker_hub_has_it_serves_with_its_port_and_a_writable_root(
    server: RunningServer, nginx: Layout
) -> None:
    flags = ("--name", "nginx", "--public", "--port", "80", "--writable-root")
    pushed = server.faas("push", "--image", nginx.folder, *flags)
    assert pushed.stdout.strip().splitlines()[-1] == f"{server.public}/function/nginx"
    assert described(server, "nginx")["interface"] == "http"
    page = server.get("/function/nginx/")
    assert (page.status, page.body) == (200, PAGE)
    assert page.headers["Server"].startswith("nginx/")
    assert server.get("/function/nginx/big.bin").body == BIG
    part = server.get("/function/nginx/big.bin", headers={"Range": "bytes=1000-1999"})
    assert (part.status, part.body) == (206, BIG[1000:2000])
    assert server.get("/function/nginx/nothing-here").status == 404
    deadline = time.monotonic() + 20
    while '"GET /nothing-here' not in (logs := server.faas("logs", "nginx", "--since", "5m").stdout):
        assert time.monotonic() < deadline, logs  # it is written after the answer
    assert "enabled listen on IPv6" in logs  # the entry script changed a file of root's
    assert '"user" directive makes sense only if the master process runs with super-user privileges' in logs
    assert '"GET /nothing-here HTTP/1.1" 404' in logs  # access.log is a link to /dev/stdout
    assert "/usr/share/nginx/html/nothing-here" in logs  # error.log is one to /dev/stderr


@pytest.mark.nginx
@pytest.mark.parametrize(
    ("flags", "cause", "remedy"),
    [
        (("--port", "80"), "Read-only file system", "writable_root = true"),
        (("--writable-root", "--init-timeout", "2"), "nothing listens on port 8080", "set port = 80"),
    ],
    ids=["read-only", "another port"],
)
def test_nginx_without_what_it_needs_is_refused_with_the_remedy(
    server: RunningServer, nginx: Layout, flags: tuple[str, ...], cause: str, remedy: str
) -> None:
    done = server.faas("push", "--image", nginx.folder, "--name", "nginx-refused", *flags, check=False)
    assert done.returncode == 1
    assert cause in done.stderr
    assert remedy in done.stderr.partition("error:")[2]
    assert server.get("/v1/functions/nginx-refused", api=True).status == 404


@pytest.mark.nginx
def test_nginx_unprivileged_needs_no_flag_at_all(server: RunningServer, tmp_path: Path) -> None:
    image = layouts.nginx(tmp_path / "layout", {"index.html": PAGE}, unprivileged=True)
    server.faas("push", "--image", image.folder, "--name", "nginx-unprivileged", "--public")
    assert server.get("/function/nginx-unprivileged/").body == PAGE


# OpenFaaS


@pytest.mark.parametrize(("user", "uid"), [("app", "65534"), ("100:101", "100")])
def test_an_openfaas_image_runs_behind_its_own_watchdog(
    server: RunningServer, tmp_path: Path, user: str, uid: str
) -> None:
    image = layouts.watchdog(tmp_path / "layout", user)
    pushed = server.faas(
        "push",
        "--image",
        image.folder,
        "--name",
        "openfaas",
        "--public",
        "--health",
        "/_/health",
        "--env",
        "LEVEL=high",
    )
    assert ("USER 'app'" in pushed.stderr) == (user == "app")
    answer = server.request("POST", "/function/openfaas/items?page=2", b"as sent")
    assert (answer.status, answer.text) == (200, "POST /items?page=2 as sent")
    assert server.get("/function/openfaas/_/health").status == 200
    assert server.get("/function/openfaas/env/LEVEL").text == "high"
    assert server.get("/function/openfaas/uid").text == uid
    large = os.urandom(300_000)
    assert server.request("POST", "/function/openfaas/", large).body == b"POST / " + large


# AWS Lambda

AWS_HANDLER = """
import json

def handler(event, context):
    if event.get("rawPath") == "/fail":
        raise ValueError("as asked")
    print("seen by", context.function_name)
    seen = {
        "id": context.aws_request_id, "arn": context.invoked_function_arn, "version": context.function_version,
        "memory": context.memory_limit_in_mb, "milliseconds": context.get_remaining_time_in_millis(),
        "method": event["requestContext"]["http"]["method"], "body": event.get("body"),
    }
    return {"statusCode": 201, "headers": {"X-Seen": "yes"}, "body": json.dumps(seen)}
"""


@pytest.fixture(scope="module")
def aws_python(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return layouts.aws_python(tmp_path_factory.mktemp("aws") / "layout", AWS_HANDLER)


def test_an_aws_base_image_runs_awss_own_runtime_client(server: RunningServer, aws_python: Layout) -> None:
    server.faas("push", "--image", aws_python.folder, "--name", "aws", "--public", "--memory", "200", "--timeout", "9")
    assert described(server, "aws")["interface"] == "lambda"
    answer = server.request("POST", "/function/aws/", b"hello")
    assert (answer.status, answer.headers["X-Seen"]) == (201, "yes")
    seen = answer.json()
    assert seen["id"] == answer.headers["X-Request-Id"]
    assert seen["arn"].endswith(":function:aws")
    assert (seen["version"], int(seen["memory"]), seen["method"], seen["body"]) == ("1", 200, "POST", "hello")
    assert 0 < seen["milliseconds"] <= 9000
    failed = server.get("/function/aws/fail")
    assert (failed.status, failed.headers["X-Error-Type"]) == (502, "ValueError")
    assert "app.py" not in failed.text
    logs = server.faas("logs", "aws", "--since", "5m", "--request-id", seen["id"]).stdout
    assert "seen by aws" in logs
    told = server.faas("invoke", "aws", "--data", '{"rawPath": "/fail"}', check=False)
    assert told.returncode == 7
    assert "ValueError" in told.stderr
    assert "emulator" not in server.faas("logs", "aws", "--since", "5m").stdout


def test_a_wrong_handler_of_an_aws_image_is_diagnosed_at_the_push(server: RunningServer, aws_python: Layout) -> None:
    for command, said in (("app.nothing", "nothing"), ("missing.handler", "missing")):
        done = server.faas(
            "push", "--image", aws_python.folder, "--name", "aws-wrong", "--command", command, check=False
        )
        assert done.returncode == 1
        error = done.stderr.partition("error:")[2]
        assert said in error
        assert "handler" in error


def test_an_aws_custom_runtime_in_shell_serves_events(server: RunningServer, tmp_path: Path) -> None:
    code = """handler() { echo "handled" >&2; printf '{"echo": %s, "as": "%s"}' "$1" "$AWS_LAMBDA_FUNCTION_NAME"; }\n"""
    image = layouts.aws_provided(tmp_path / "layout", code)
    server.faas("push", "--image", image.folder, "--name", "provided", "--public")
    done = server.faas("invoke", "provided", "--data", '{"n": [1, "zwei"]}')
    assert json.loads(done.stdout) == {"echo": {"n": [1, "zwei"]}, "as": "provided"}
    event = server.request("PUT", "/function/provided/a/b?c=d", b"body").json()["echo"]
    assert (event["version"], event["rawPath"], event["rawQueryString"]) == ("2.0", "/a/b", "c=d")
    assert "handled" in server.faas("logs", "provided", "--since", "5m").stdout


# Forms of a push


def answers_as_pushed(server: RunningServer, name: str) -> None:
    assert server.get(f"/function/{name}/env/GREETING").text == "from the flag"
    assert server.get(f"/function/{name}/env/AWS_LAMBDA_FUNCTION_MEMORY_SIZE").text == "192"
    assert server.get(f"/function/{name}/env/PORT").text == "8080"
    assert described(server, name)["memory"] == 192


FLAGS = ("--public", "--memory", "192", "--env", "GREETING=from the flag")


@pytest.mark.skopeo
def test_a_tag_that_skopeo_pushed_runs_under_the_digest_that_it_has(server: RunningServer, tmp_path: Path) -> None:
    image = layouts.web(tmp_path / "layout")
    host = server.registry.removeprefix("http://")
    login = ("--dest-tls-verify=false", "--dest-creds", f"admin:{server.token}")
    target = f"docker://{host}/team/web:1.0"
    run("skopeo", "--insecure-policy", "copy", "--preserve-digests", *login, f"oci:{image.folder}", target)
    for number, reference in enumerate(("team/web:1.0", f"{host}/team/web:1.0", f"team/web@{image.digest}")):
        name = f"tagged-{number}"
        server.faas("push", "--image", reference, "--name", name, *FLAGS)
        assert described(server, name)["image"] == f"team/web@{image.digest}"
        answers_as_pushed(server, name)


@pytest.mark.skopeo
def test_of_an_image_for_several_platforms_this_machines_runs(server: RunningServer, tmp_path: Path) -> None:
    image = layouts.web(tmp_path / "layout")
    index = layouts.for_two_platforms(image)
    server.faas("push", "--image", index.archive(tmp_path / "index.tar"), "--name", "platforms", *FLAGS)
    answers_as_pushed(server, "platforms")
    host = server.registry.removeprefix("http://")
    login = ("--dest-tls-verify=false", "--dest-creds", f"admin:{server.token}")
    target = f"docker://{host}/team/platforms:1.0"
    run("skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", *login, f"oci:{index.folder}", target)
    server.faas("push", "--image", "team/platforms:1.0", "--name", "platforms-tag", *FLAGS)
    assert described(server, "platforms-tag")["image"] == f"team/platforms@{image.digest}"
    answers_as_pushed(server, "platforms-tag")


def test_an_oci_archive_runs_and_the_image_itself_is_unchanged(server: RunningServer, tmp_path: Path) -> None:
    image = layouts.web(tmp_path / "layout")
    archive = image.archive(tmp_path / "web.tar")
    server.faas("push", "--image", archive, "--name", "archived", *FLAGS)
    assert described(server, "archived")["image"] == f"archived@{image.digest}"
    answers_as_pushed(server, "archived")
    assert server.faas("push", "--image", archive, "--name", "archived", *FLAGS).stderr.count("unchanged") == 1
    server.faas("push", "--image", archive, "--name", "archived", "--public")
    assert server.get("/function/archived/env/GREETING").text == "from the image"


@pytest.fixture
def engine_image(tmp_path: Path) -> Iterator[str]:
    name = "faas-test-web:1"
    (tmp_path / "web").write_bytes(layouts.compiled("web"))
    (tmp_path / "web").chmod(0o755)
    run("tar", "-C", tmp_path, "-cf", tmp_path / "root.tar", "web")
    run("docker", "import", "-c", 'ENTRYPOINT ["/web"]', "-c", "ENV GREETING=x", tmp_path / "root.tar", name)
    yield name
    run("docker", "rmi", "-f", name)


@pytest.mark.docker
def test_an_image_of_the_local_engine_runs(server: RunningServer, engine_image: str) -> None:
    server.faas("push", "--image", engine_image, "--name", "imported", *FLAGS)
    assert str(described(server, "imported")["image"]).startswith("imported@sha256:")
    answers_as_pushed(server, "imported")


@pytest.mark.docker
def test_a_tag_that_docker_pushed_runs(server: RunningServer, engine_image: str, tmp_path: Path) -> None:
    host = server.registry.removeprefix("http://")
    docker, target = ("docker", "--config", tmp_path / "config"), f"{host}/team/docker:1"
    run(*docker, "login", "-u", "admin", "--password-stdin", host, input=server.token)
    run("docker", "tag", engine_image, target)
    try:
        run(*docker, "push", target)
        server.faas("push", "--image", target, "--name", "docker-pushed", *FLAGS)
    finally:
        run("docker", "rmi", target)
    answers_as_pushed(server, "docker-pushed")


def test_an_image_that_is_nowhere_is_refused_by_name(server: RunningServer) -> None:
    done = server.faas("push", "--image", "nowhere/to/be:found", "--name", "nowhere", check=False)
    assert done.returncode != 0
    assert "nowhere/to/be:found" in done.stderr or "no Docker Engine answers" in done.stderr


# Dependencies


def received(server: RunningServer) -> float:
    """Bytes of blobs that the registry has taken."""
    metrics = server.get("/metrics", api=True).text
    lines = [line for line in metrics.splitlines() if line.startswith('faas_registry_bytes_total{direction="in"}')]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


def change_uploads_kilobytes(server: RunningServer, folder: Path, file: str, before: str, after: str) -> None:
    """Replace a word in one file and push again."""
    path = folder / file
    path.write_text(path.read_text().replace(before, after))
    already = received(server)
    server.faas("push", folder)
    uploaded = received(server) - already
    assert 0 < uploaded < 100_000


@pytest.mark.npm
def test_a_node_function_has_its_npm_packages_and_a_change_uploads_kilobytes(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # nothing is kept from an earlier run
    folder = tmp_path / "durations"
    folder.mkdir()
    (folder / "package.json").write_text('{"dependencies": {"ms": "^2.1.3"}}')
    (folder / "index.js").write_text(
        "const ms = require('ms');\n"
        "exports.handler = async (event) => ({statusCode: 200, body: `one ${ms(event.rawPath.slice(1))}`});\n"
    )
    (folder / "faas.toml").write_text(
        'name = "durations"\nruntime = "node"\nhandler = "index.handler"\npublic = true\n'
    )
    server.faas("push", folder)
    assert server.get("/function/durations/2d").text == "one 172800000"
    change_uploads_kilobytes(server, folder, "index.js", "one", "two")
    assert server.get("/function/durations/2d").text == "two 172800000"


def test_a_python_function_has_its_wheels_with_c_code_and_a_change_uploads_kilobytes(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "escapes"
    folder.mkdir()
    (folder / "requirements.txt").write_text("markupsafe==3.0.2\n")
    (folder / "app.py").write_text(
        "import markupsafe, markupsafe._speedups as compiled\n"
        "def handler(event, context):\n"
        "    text = markupsafe.escape(event['text'])\n"
        "    return {'one': str(text), 'compiled': compiled.__file__}\n"
    )
    (folder / "faas.toml").write_text('name = "escapes"\nruntime = "python"\nhandler = "app.handler"\n')
    server.faas("push", folder)

    def answer() -> dict[str, str]:
        return dict(json.loads(server.faas("invoke", "escapes", "--data", '{"text": "<a & b>"}').stdout))

    first = answer()
    assert first["one"] == "&lt;a &amp; b&gt;"
    assert first["compiled"].endswith(".so")
    change_uploads_kilobytes(server, folder, "app.py", "one", "two")
    assert answer()["two"] == first["one"]


# WSGI

WSGI = """
import threading, time

running, lock = [0, 0], threading.Lock()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/most":
        with lock:
            running[0] += 1
            running[1] = max(running)
        until = time.monotonic() + 10
        while running[1] < 4 and time.monotonic() < until:  # however far apart they come
            time.sleep(0.02)
        time.sleep(0.1)
        with lock:
            running[0] -= 1
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(running[1]).encode()]
    if path == "/fail":
        raise ValueError("as asked")
    if path == "/stream":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (b"line %d\\n" % number for number in range(3))
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0))
    cookies = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    start_response("418 I'm a teapot", [("Content-Length", str(len(body))), *cookies])
    environ["wsgi.errors"].write(f"{environ['REQUEST_METHOD']} {path} {environ['QUERY_STRING']}\\n")
    return [body]
"""


def test_a_wsgi_application_serves_as_many_requests_at_once_as_its_concurrency(
    server: RunningServer, tmp_path: Path
) -> None:
    folder = tmp_path / "wsgi"
    folder.mkdir()
    (folder / "main.py").write_text(WSGI)
    (folder / "faas.toml").write_text(
        'name = "wsgi"\nruntime = "python"\napp = "main:app"\npublic = true\nconcurrency = 4\n[scale]\nmax = 1\n'
    )
    server.faas("push", folder)
    assert described(server, "wsgi")["interface"] == "http"
    answer = server.request("POST", "/function/wsgi/b%C3%A4r/x?q=1%202", b"tea" * 50_000)
    assert (answer.status, answer.body) == (418, b"tea" * 50_000)
    assert server.get("/function/wsgi/stream").text == "line 0\nline 1\nline 2\n"
    assert server.get("/function/wsgi/fail").status == 500
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        counts = [f.result().text for f in [threads.submit(server.get, "/function/wsgi/most") for _ in range(6)]]
    assert max(counts) == "4"
    logs = server.faas("logs", "wsgi", "--since", "5m").stdout
    assert "q=1%202" in logs
    assert "ValueError: as asked" in logs
