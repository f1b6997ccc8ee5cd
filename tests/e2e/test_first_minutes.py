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
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest
from PIL import Image

from faas.build import rootfs
from faas.build.interpreter import find_python
from faas.build.layer import pack
from tests.conftest import SOAK
from tests.support.other_python import push_as_plain_user, remove_environments
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


def test_the_api_takes_an_image_by_every_name_of_this_machine(server: RunningServer, samples: Path) -> None:
    server.faas("push", samples / "hello")
    function = server.get("/v1/functions/hello", api=True).json()
    image = f"localhost:{server.registry.rpartition(':')[2]}/{function['image']}"
    body = json.dumps({"spec": function["spec"], "image": image}).encode()
    answer = server.request("PUT", "/v1/functions/hello", body, {"Content-Type": "application/json"}, api=True)
    assert (answer.status, answer.json()["changed"]) == (200, False), answer.text


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


def test_an_asgi_app_answers_over_http_and_streams(server: RunningServer, samples: Path) -> None:
    server.faas("push", samples / "web")
    answer = server.get("/function/web/")
    assert answer.status == 200
    described = server.get("/v1/functions/web", api=True).json()
    assert described["interface"] == "http"


@pytest.fixture
def engine() -> Iterator[docker.DockerClient]:
    """The Docker Engine, in the end without the images that pushes of this test have built."""
    client, builds = docker.from_env(), {"reference": "faas-build/*"}
    before = {tag for image in client.images.list(filters=builds) for tag in image.tags}
    yield client
    for tag in {tag for image in client.images.list(filters=builds) for tag in image.tags} - before:
        client.images.remove(tag)
    client.close()


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
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


ASKED = "import ensurepip, venv, sys; print('%d.%d' % sys.version_info[:2])"


def other_pythons() -> list[Path]:
    """The newest interpreter of another version that is here; in a long run one of each; where there is none, other
    builds of this version."""
    names = [f"python3.{minor}" for minor in range(11, 16)]
    beside = (p for name in names for p in sorted(Path(sys.base_prefix).parent.glob(f"3.*/bin/{name}")))  # pyenv's
    placed = (Path(folder) / name for folder in ("/usr/local/bin", "/usr/bin") for name in names)
    found: dict[str, Path] = {}
    builds: dict[Path, Path] = {}
    own = Path(sys.base_prefix).resolve()
    for path in (*beside, *placed):
        if not path.exists() or path.resolve().is_relative_to(own):
            continue
        done = subprocess.run([path, "-I", "-c", ASKED], capture_output=True, text=True)
        version = done.stdout.strip()
        if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
            builds.setdefault(path.resolve(), path)
        elif version:  # without venv and ensurepip it can make no environment
            found.setdefault(version, path)
    others = list(found.values())
    return (others if SOAK else others[-1:]) or list(builds.values())


@pytest.fixture(scope="session")
def environments() -> Iterator[None]:
    """The environments that `push_as_plain_user` makes are gone when the tests end."""
    yield
    remove_environments()


@pytest.mark.usefixtures("environments")
@pytest.mark.parametrize("other", other_pythons() or [None], ids=lambda path: path.name if path else "none")
def test_a_client_with_another_python_as_a_plain_user_makes_the_same_image(
    server: RunningServer, tmp_path: Path, other: Path | None, project_root: Path
) -> None:
    if other is None:
        pytest.skip("this machine has one Python only: apt-get install python3-venv would give another build")
    code = tmp_path / "same"
    code.mkdir()
    (code / "app.py").write_text(HELLO)
    (code / "requirements.txt").write_text("markupsafe==3.0.2\n")
    (code / "faas.toml").write_text('name = "same"\nruntime = "python"\nhandler = "app.handler"\npublic = true\n')
    server.faas("push", code)
    ours = server.get("/v1/functions/same", api=True).json()["image"]
    push_as_plain_user(other, project_root, code, server)
    assert server.get("/v1/functions/same", api=True).json()["image"] == ours


def test_a_file_whose_name_has_spaces_and_is_not_ascii_is_there(server: RunningServer, tmp_path: Path) -> None:
    name = "my data/größe 文 🎈.txt"
    file = tmp_path / "names" / name
    file.parent.mkdir(parents=True)
    file.write_text("read")
    code = f"def handler(event, context):\n    return open({name!r}, encoding='utf-8').read()\n"
    server.push_code(tmp_path, "names", code)
    assert server.get("/function/names").json() == "read"


@pytest.fixture
def python_image(engine: docker.DockerClient, tmp_path: Path) -> Iterator[None]:
    """`python:3.12-slim`, which the template stands on, from this machine's Python where the engine has none."""
    tag = "python:3.12-slim"
    try:
        engine.images.get(tag)
        made = False
    except docker.errors.ImageNotFound:
        made = True
        work = tmp_path / "image"
        work.mkdir()
        files = [*rootfs.system(), *rootfs.python_files(find_python(), work)]
        layer = pack(files, work / "root.tar", "python")
        engine.api.import_image_from_file(str(layer.path), repository="python", tag="3.12-slim")
    yield
    if made:
        engine.images.remove(tag)


@pytest.mark.docker
@pytest.mark.usefixtures("python_image")
def test_the_container_template_is_pushed_as_it_is_and_the_engine_keeps_one_image(
    server: RunningServer, tmp_path: Path, engine: docker.DockerClient
) -> None:
    def untagged() -> set[str]:
        found = engine.images.list(filters={"dangling": True})
        return {str(image.id) for image in found if image.attrs["Config"]["WorkingDir"] == "/srv"}

    folder, before = tmp_path / "boxed", untagged()
    server.faas("new", folder, "--runtime", "container")
    server.faas("push", folder)
    assert server.get("/function/boxed/there").text == "hello from /there\n"
    assert "v1, unchanged" in server.faas("push", folder).stderr
    source = folder / "server.py"
    source.write_text(source.read_text().replace("hello from", "hi from"))
    server.faas("push", folder)
    assert server.get("/function/boxed/there").text == "hi from /there\n"
    assert untagged() <= before
