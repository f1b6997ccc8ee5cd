"""A new user's first minutes: push the samples, call them, read logs, change a line, roll back."""

from __future__ import annotations

import concurrent.futures
import io
import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from tests.support.other_python import push_as_plain_user
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]

HELLO = "def handler(event, context):\n    return {'statusCode': 200, 'body': 'one'}\n"


@pytest.fixture(scope="session")
def samples(project_root: Path) -> Path:
    return project_root / "tests" / "functions"


def test_hello_in_python(server: RunningServer, samples: Path) -> None:
    pushed = server.faas("push", samples / "hello")
    assert pushed.stdout.strip().splitlines()[-1] == f"{server.public}/function/hello"
    answer = server.get("/function/hello")
    assert answer.status == 200
    assert "hello" in answer.text.lower()
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["X-Request-Id"])


def test_the_same_push_again_changes_nothing(server: RunningServer, samples: Path) -> None:
    server.faas("push", samples / "hello")
    before = server.get("/v1/functions/hello", api=True).json()
    server.faas("push", samples / "hello")
    after = server.get("/v1/functions/hello", api=True).json()
    assert (after["revision"], after["image"]) == (before["revision"], before["image"])


@pytest.mark.npm
def test_hello_in_node(server: RunningServer, samples: Path) -> None:
    server.faas("push", samples / "hello-node")
    answer = server.get("/function/hello-node")
    assert (answer.status, "hello" in answer.text.lower()) == (200, True)


def test_a_photo_becomes_a_thumbnail_inside_the_sandbox(server: RunningServer, samples: Path) -> None:
    photo = (samples / "thumbnail" / "photo.jpg").read_bytes()
    server.faas("push", samples / "thumbnail")
    answer = server.request("POST", "/function/thumbnail", photo, {"Content-Type": "image/jpeg"})
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == "image/jpeg"
    assert len(answer.body) < len(photo)
    small, large = Image.open(io.BytesIO(answer.body)), Image.open(io.BytesIO(photo))
    assert max(small.size) < max(large.size)
    assert abs(small.width / small.height - large.width / large.height) < 0.05


def test_the_server_itself_needs_no_pillow(project_root: Path) -> None:
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    assert not any(re.match(r"pillow\b", dependency, re.I) for dependency in project["dependencies"])


def test_an_asgi_app_answers_over_http_and_streams(server: RunningServer, samples: Path) -> None:
    server.faas("push", samples / "web")
    answer = server.get("/function/web/")
    assert answer.status == 200
    described = server.get("/v1/functions/web", api=True).json()
    assert described["interface"] == "http"


@pytest.mark.docker
def test_a_static_binary_in_an_image_of_its_own(server: RunningServer, samples: Path, tmp_path: Path) -> None:
    folder = tmp_path / "static"
    shutil.copytree(samples / "static", folder)
    subprocess.run(["gcc", "-O2", "-static", "-o", folder / "hello", folder / "hello.c"], check=True)
    server.faas("push", folder)
    answer = server.get("/function/static")
    assert (answer.status, answer.text) == (200, "Hello from a binary\n")


def test_a_one_line_change_uploads_kilobytes_and_rolls_back(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "change", HELLO)
    assert server.get("/function/change").text == "one"
    began = time.monotonic()
    server.push_code(tmp_path, "change", HELLO.replace("one", "two"))
    assert server.get("/function/change").text == "two"
    print(f"a one-line change took {time.monotonic() - began:.2f} s to its first answer")
    versions = json.loads(server.faas("versions", "change", "-o", "json").stdout)
    assert [row["number"] for row in versions] == [2, 1] or [row["number"] for row in versions] == [1, 2]
    assert server.get("/function/change:v1").text == "one"
    server.faas("rollback", "change")
    assert server.get("/function/change").text == "one"


def test_invoke_shows_the_report_line_and_logs_hold_what_was_printed(server: RunningServer, tmp_path: Path) -> None:
    code = "def handler(event, context):\n    print('seen', event['n'])\n    return event['n'] * 2\n"
    server.push_code(tmp_path, "double", code)
    done = server.faas("invoke", "double", "--data", '{"n": 21}', "--log")
    assert json.loads(done.stdout) == 42
    assert re.search(
        r"REPORT RequestId: \S+\tDuration: [\d.]+ ms\tBilled Duration: \d+ ms\tMemory Size: 128 MB"
        r"\tMax Memory Used: \d+ MB",
        done.stderr,
    )
    lines = server.faas("logs", "double", "--since", "5m").stdout
    assert "seen 21" in lines
    assert lines.index("START RequestId") < lines.index("seen 21") < lines.index("END RequestId")


def test_a_function_that_raises_ends_the_command_with_7(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "raises", "def handler(event, context):\n    raise KeyError('lost')\n")
    done = server.faas("invoke", "raises", check=False)
    assert done.returncode == 7
    assert "KeyError" in done.stderr
    assert "Traceback" not in done.stdout


def test_a_missing_module_is_diagnosed_at_the_push(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import nowhere_to_be_found\n\ndef handler(event, context): ...\n")
    (tmp_path / "faas.toml").write_text('name = "nomodule"\nruntime = "python"\nhandler = "app.handler"\n')
    done = server.faas("push", tmp_path, check=False)
    assert done.returncode == 1
    assert "nowhere_to_be_found" in done.stderr
    assert "requirements.txt" in done.stderr


def test_from_zero_up_with_concurrency_and_back(server: RunningServer, tmp_path: Path) -> None:
    code = "import time\ndef handler(event, context):\n    time.sleep(0.4)\n    return 'ok'\n"
    server.push_code(tmp_path, "scales", code, '[scale]\nmax = 3\nidle = "2s"')
    server.faas("scale", "scales", "0")

    def instances() -> int:
        counts = server.get("/v1/functions/scales", api=True).json()["instances"]
        return counts["starting"] + counts["idle"] + counts["busy"]

    wait_until(lambda: instances() == 0)
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        waiting = [threads.submit(server.get, "/function/scales") for _ in range(6)]
        most = 0
        while not all(w.done() for w in waiting):
            most = max(most, instances())
            time.sleep(0.05)
    assert [w.result().status for w in waiting] == [200] * 6
    assert most == 3
    wait_until(lambda: instances() == 0)


def test_a_queue_that_is_too_long_to_wait_in_is_refused_with_429(server: RunningServer, tmp_path: Path) -> None:
    code = "import time\ndef handler(event, context):\n    time.sleep(3)\n    return 'ok'\n"
    server.push_code(tmp_path, "busy", code, "queue_timeout = 1\n[scale]\nmax = 1")
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        answers = [f.result() for f in [threads.submit(server.get, "/function/busy") for _ in range(2)]]
    assert sorted(a.status for a in answers) == [200, 429]
    refused = next(a for a in answers if a.status == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["Reason"] == "ConcurrentInvocationLimitExceeded"


def test_a_private_function_asks_for_credentials(server: RunningServer, tmp_path: Path) -> None:
    target = tmp_path / "private"
    target.mkdir()
    (target / "app.py").write_text(HELLO)
    (target / "faas.toml").write_text('name = "private"\nruntime = "python"\nhandler = "app.handler"\n')
    server.faas("push", target)
    assert server.get("/function/private").status == 401
    assert server.get("/function/private", token=server.token).text == "one"


def test_nothing_internal_answers_on_the_public_listener(server: RunningServer) -> None:
    for path in ("/v1/info", "/v1/functions", "/metrics", "/healthz", "/v2/", "/2018-06-01/runtime/invocation/next"):
        assert server.get(path, token=server.token).status == 404, path


def wait_until(condition, seconds: float = 15) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_a_client_with_another_python_as_a_plain_user_makes_the_same_image(
    server: RunningServer, tmp_path: Path, version: str, project_root: Path
) -> None:
    beside = sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python{version}"))  # a version manager's
    other = beside[0] if beside else shutil.which(f"python{version}")
    if other is None:
        pytest.skip(f"no Python {version} here")
    code = tmp_path / "same"
    code.mkdir()
    (code / "app.py").write_text(HELLO)
    (code / "requirements.txt").write_text("markupsafe==3.0.2\n")
    (code / "faas.toml").write_text('name = "same"\nruntime = "python"\nhandler = "app.handler"\npublic = true\n')
    server.faas("push", code)
    ours = server.get("/v1/functions/same", api=True).json()["image"]
    push_as_plain_user(Path(other), project_root, code, server)
    assert server.get("/v1/functions/same", api=True).json()["image"] == ours
