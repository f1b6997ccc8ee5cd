"""`faas dev`'s side of the server: new code at each save, for one developer, and nothing of it afterwards."""

from __future__ import annotations

import gzip
import io
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from faas.dev import CODE_BYTES, LEASE_SECONDS, UNPACKED_BYTES, dev_name
from faas.errors import InvalidInput
from faas.leases import InvocationResult
from faas.oci import labels, media_types
from faas.oci.descriptor import Descriptor
from faas.oci.digest import Digest
from faas.oci.manifest import ImageConfig, Manifest
from faas.oci.platform import architecture
from faas.protocol import Revision
from gateway import dev_sessions
from tests.support.control import Control, control
from tests.support.fake_worker import FakeWorker

ONE, TWO = "1" * 32, "2" * 32
NAME = "hello--dev-ada"
PATH = f"/v1/dev/{NAME}"
LAYER = Descriptor(media_types.OCI_LAYER, Digest.of(b"the base's layer"), 16)
CONFIG = ImageConfig(
    architecture(), diff_ids=(LAYER.digest,), entrypoint=("/usr/bin/python3",), env=("LANG=C.UTF-8",)
).to_json()
BASE = Manifest.image(Descriptor(media_types.OCI_CONFIG, Digest.of(CONFIG), len(CONFIG)), [LAYER])
IMAGE = f"runtime/python:3.11@{BASE.digest}"
SPEC: dict[str, Any] = {"name": NAME, "runtime": "python", "handler": "app.handler", "public": True}


def code(text: str) -> bytes:
    """A compressed layer with one file."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            entry = tarfile.TarInfo("var/task/app.py")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
        return gzip.compress(file.getvalue(), mtime=0)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Control]:
    async def numbered(revision: Revision, payload: bytes) -> InvocationResult:
        return InvocationResult(f'"{revision.key.number}"'.encode())

    async with control(tmp_path, FakeWorker(numbered)) as made:
        made.images.hold(BASE, {Digest.of(CONFIG): CONFIG})
        yield made


async def begin(running: Control, session: str = ONE, *, token: str | None = None, **spec: Any) -> Any:
    body = {"spec": {**SPEC, **spec}, "image": IMAGE}
    return await running.call("PUT", f"{PATH}?session={session}", body, token=token)


async def save(running: Control, text: str, session: str = ONE) -> Any:
    return await running.call("PUT", f"{PATH}/code?session={session}", code(text))


async def called(running: Control) -> Any:
    return await running.call("GET", f"/function/{NAME}", public=True)


async def test_a_save_is_what_the_next_call_runs_and_makes_no_function_and_no_revision(running: Control) -> None:
    opened = await begin(running)
    assert (opened.status, opened.json()["inactive"]) == (200, [])
    assert (await called(running)).status == 404, "there is no code yet"
    seen = []
    for text in ("one", "two", "three"):
        saved = await save(running, text)
        assert (saved.status, saved.json()["check"]["interface"]) == (200, "lambda")
        seen.append((await called(running)).body)
    assert seen == [b'"1"', b'"2"', b'"3"'], "each save is answered by itself"
    listed = (await running.call("GET", "/v1/functions")).json()["functions"]
    assert listed == []
    assert [one["name"] for one in (await running.call("GET", "/v1/dev")).json()["dev"]] == [NAME]
    assert (await running.call("GET", f"/v1/functions/{NAME}/revisions")).json()["revisions"] == []


async def test_the_worker_gets_the_base_with_the_code_on_it_and_two_of_all_saves_are_kept(running: Control) -> None:
    await begin(running)
    for number in range(5):
        await save(running, f"code {number}")
    revision = running.gateway.router.resolve("default", NAME).revision
    images = running.gateway.dev._images
    made = await images.manifest(revision.image, architecture())
    assert made.config is not None
    with await images.open_blob(f"dev/{NAME}", made.config) as file:
        config = ImageConfig.parse(file.read())
    assert "_HANDLER=app.handler" in config.env
    assert config.labels[labels.BASE] == IMAGE, "with its tag, as a push writes it: stems are found by it"
    assert made.layers[:-1] == BASE.layers
    with await images.open_blob(f"dev/{NAME}", made.layers[-1]) as file:
        content = file.read()
    assert b"code 4" in content
    assert Digest.of(content) == made.layers[-1].digest == config.diff_ids[-1]
    assert len(list(images.folder(NAME).glob("*.tar"))) == 2


async def test_code_that_does_not_start_is_told_at_once_and_is_what_calls_get(running: Control) -> None:
    await begin(running)
    await save(running, "good")
    before = (await called(running)).body
    running.worker.fails = "SyntaxError: '(' was never closed"
    refused = await save(running, "bad")
    assert (refused.status, refused.json()["error"]["code"]) == (502, "Runtime.InitError")
    assert "never closed" in refused.json()["error"]["log_tail"]
    state = running.gateway.router.state("default", NAME)
    assert state is not None
    assert state.live is not None
    assert f'"{state.live.key.number}"'.encode() != before, "nobody is served by the old code unawares"
    running.worker.fails = ""
    assert (await save(running, "good again")).status == 200


async def test_an_image_without_a_runtime_is_deployed_by_its_name_alone(running: Control) -> None:
    spec = {"name": NAME, "public": True}
    body = {"spec": spec, "image": f"hello@{BASE.digest}"}
    assert (await running.call("PUT", f"{PATH}?session={ONE}", body)).json()["check"]["interface"] == "lambda"
    assert (await called(running)).status == 200
    assert running.gateway.router.resolve("default", NAME).revision.image == f"hello@{BASE.digest}"
    assert (await save(running, "x")).status == 400


async def test_schedules_routes_and_what_is_kept_ready_are_left_out_and_named(running: Control) -> None:
    opened = await begin(
        running,
        schedule=[{"name": "tick", "cron": "* * * * *"}],
        route=[{"path": "/mine"}],
        follow="stable",
        scale={"min": 2, "reserved": 2, "max": 4},
    )
    assert opened.json()["inactive"] == ["schedule", "route", "follow", "scale.min", "scale.reserved"]
    await save(running, "x")
    assert (await running.call("GET", "/v1/schedules")).json()["schedules"] == []
    assert (await running.call("GET", "/mine", public=True)).status == 404
    assert running.worker.reserved == {}
    spec = running.gateway.router.resolve("default", NAME).revision.spec
    assert (spec.scale.min, spec.scale.max) == (0, 4)


async def test_secrets_are_those_of_the_namespace_and_must_be_there(running: Control) -> None:
    await begin(running, secrets={"PASSWORD": "db-password"})
    refused = await save(running, "one")
    assert (refused.status, "db-password" in refused.json()["error"]["message"]) == (400, True)
    assert (await called(running)).status == 404


async def test_another_run_of_the_same_person_takes_over_and_another_person_does_not(running: Control) -> None:
    await begin(running)
    await save(running, "one")
    assert (await begin(running, TWO)).status == 200
    for answer in (
        await save(running, "two"),
        await running.call("POST", f"{PATH}/beat?session={ONE}"),
        await running.call("DELETE", f"{PATH}?session={ONE}"),
    ):
        assert answer.status == 409
        assert "taken" in answer.json()["error"]["message"]
    assert (await save(running, "two", TWO)).status == 200
    stranger = await running.a_token("deployer")
    assert (await begin(running, ONE, token=stranger)).status == 409


async def test_one_person_does_not_keep_all_of_them(running: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev_sessions, "OF_ONE", 1)
    assert (await begin(running)).status == 200
    name = "hello--dev-bob"
    for token, status in ((None, 429), (await running.a_token("deployer"), 200)):
        body = {"spec": {**SPEC, "name": name}, "image": IMAGE}
        answered = await running.call("PUT", f"/v1/dev/{name}?session={TWO}", body, token=token)
        assert answered.status == status


async def test_it_ends_with_its_command_and_leaves_nothing(running: Control, tmp_path: Path) -> None:
    await begin(running)
    for text in ("one", "two"):
        await save(running, text)
    assert (await running.call("POST", f"/async-function/{NAME}", {"a": 1})).status == 202
    held = await running.gateway.held()
    assert IMAGE in held
    assert [name for name in held if name.startswith(f"dev/{NAME}@")]
    assert (await running.call("DELETE", f"{PATH}?session={ONE}")).status == 204
    assert (await called(running)).status == 404
    assert await running.gateway.held() == {}
    assert list((tmp_path / "dev").iterdir()) == []
    assert ("default", NAME) in running.worker.forgotten
    assert {key.number for key in running.worker.retired} >= {1, 2}
    assert (await running.call("POST", f"{PATH}/beat?session={ONE}")).status == 404


async def test_it_ends_when_its_command_is_not_heard_of(running: Control) -> None:
    await begin(running)
    await save(running, "one")
    dev = running.gateway.dev
    await dev.tick(time.monotonic() + LEASE_SECONDS - 5)
    assert (await called(running)).status == 200
    await running.call("POST", f"{PATH}/beat?session={ONE}")
    await dev.tick(time.monotonic() + LEASE_SECONDS + 5)
    assert (await called(running)).status == 404


async def test_what_a_killed_server_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / "dev" / f"{NAME}.team"
    left.mkdir(parents=True)
    (left / "code.tar").write_bytes(b"x")
    async with control(tmp_path) as running:
        assert not left.exists()
        assert ("team", NAME) in running.worker.forgotten


async def test_such_names_are_for_faas_dev_alone_and_nothing_else_changes_them(running: Control) -> None:
    body = {"spec": {"name": NAME}, "image": f"hello@{BASE.digest}"}
    refused = await running.call("PUT", f"/v1/functions/{NAME}", body)
    assert (refused.status, "faas dev" in refused.json()["error"]["message"]) == (400, True)
    await begin(running)
    await save(running, "one")
    for method, path, sent in (
        ("DELETE", f"/v1/functions/{NAME}", None),
        ("PUT", f"/v1/functions/{NAME}/aliases/beta", {"revision": 1}),
        ("POST", f"/v1/functions/{NAME}/rollback", {}),
        ("POST", f"/v1/functions/{NAME}/scale", {"instances": 3}),
    ):
        assert (await running.call(method, path, sent)).status == 400, path
    assert (await called(running)).status == 200
    plain = {"spec": {**SPEC, "name": "hello"}, "image": IMAGE}
    assert (await running.call("PUT", f"/v1/dev/hello?session={ONE}", plain)).status == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no gzip", 400),
        (code("x")[:-12], 400),
        (gzip.compress(bytes(UNPACKED_BYTES + 1), 1), 413),
        (bytes(CODE_BYTES + 1), 413),
    ],
    ids=["no gzip", "cut off", "a bomb", "too long"],
)
async def test_what_is_no_code_is_refused_and_leaves_nothing(
    running: Control, tmp_path: Path, body: bytes, status: int
) -> None:
    await begin(running)
    assert (await running.call("PUT", f"{PATH}/code?session={ONE}", body)).status == status
    assert not list((tmp_path / "dev").rglob("*.*"))


def test_a_dev_function_is_called_after_function_and_person() -> None:
    assert dev_name("hello", "Ada.L@example.com") == "hello--dev-ada-l-example-com"
    assert dev_name("hello", "!") == "hello--dev-me"
    with pytest.raises(InvalidInput, match="longer than"):
        dev_name("x" * 50, "somebody-long")
