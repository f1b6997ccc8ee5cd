"""What an instance is given: command line, environment, user, limits; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from faas.errors import ImageUnusable
from faas.oci.labels import SECRETS_READER, SECRETS_VARIABLE
from faas.oci.manifest import ImageConfig
from faas.oci.platform import architecture
from faas.protocol import Revision, RevisionKey
from faas.secret import Secret
from faas.spec import Network, parse
from worker.diagnosis import ended, hint_from, larger, not_ready
from worker.drivers.base import NOBODY, Exit, PreparedImage, SandboxSpec
from worker.sandbox_spec import cpus, sandbox_spec, user, user_warning

NOW = 1_767_225_600.0  # 2026-01-01


def revision(namespace: str = "default", **keys: Any) -> Revision:
    return Revision(RevisionKey(namespace, "hello", 7), parse({"name": "hello", **keys}), "hello@sha256:" + "0" * 64)


def build(image: ImageConfig | None = None, **keys: Any) -> SandboxSpec:
    config = image or ImageConfig(architecture(), entrypoint=("/entry",), cmd=("app.handler",))
    return sandbox_spec(revision(**keys), PreparedImage("x", config, None), "abc123", now=NOW)


@pytest.mark.parametrize(
    ("keys", "args"),
    [
        ({}, ("/entry", "app.handler")),
        ({"command": ["other.handler"]}, ("/entry", "other.handler")),
        ({"entrypoint": ["/mine"]}, ("/mine",)),
        ({"entrypoint": ["/mine"], "command": ["a"]}, ("/mine", "a")),
    ],
)
def test_the_specs_command_overrides_the_images(keys: dict[str, Any], args: tuple[str, ...]) -> None:
    assert build(**keys).args == args


def test_the_environment_is_the_images_lambdas_and_the_users_and_nothing_of_the_servers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SERVER_SECRET", "canary")
    image = ImageConfig(
        architecture(),
        entrypoint=("x",),
        env=("PATH=/opt/bin", "LEVEL=image", "ONLY=image", "AWS_LAMBDA_RUNTIME_API=evil"),
    )
    env = build(
        image,
        namespace="team",
        runtime="python3.11",
        handler="app.handler",
        memory=256,
        port=3000,
        env={"LEVEL": "user", "PORT": "1", "AWS_REGION": "eu-west-1"},
    ).env
    assert env["PATH"] == "/opt/bin"
    assert (env["LEVEL"], env["ONLY"]) == ("user", "image")
    assert env["AWS_LAMBDA_RUNTIME_API"] == "127.0.0.1:9001"
    assert env["PORT"] == "3000"
    assert env["AWS_REGION"] == "eu-west-1"
    assert env["_HANDLER"] == "app.handler"
    assert env["AWS_LAMBDA_FUNCTION_NAME"] == "hello"
    assert env["AWS_LAMBDA_FUNCTION_VERSION"] == "7"
    assert env["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"
    assert env["AWS_LAMBDA_LOG_GROUP_NAME"] == "/aws/lambda/hello.team"
    assert env["AWS_LAMBDA_LOG_STREAM_NAME"] == "2026/01/01/[7]abc123"
    assert env["AWS_EXECUTION_ENV"] == "AWS_Lambda_python3.11"
    assert env["TZ"] == ":UTC"
    assert "canary" not in env.values()


def test_a_variable_without_a_name_is_left_out() -> None:
    image = ImageConfig(architecture(), entrypoint=("x",), env=("=x", "ALONE", ""))
    env = build(image).env
    assert "" not in env
    assert env["ALONE"] == ""


def test_a_web_application_is_told_how_many_requests_come_at_once() -> None:
    assert build().env["FAAS_CONCURRENCY"] == "1"
    assert build(concurrency=8).env["FAAS_CONCURRENCY"] == "8"


def test_limits_follow_the_spec_and_init_gets_a_full_core() -> None:
    small = build(memory=128, ephemeral_storage=16, network="none", writable_root=True)
    assert (small.memory_bytes, small.tmp_bytes, small.cpus) == (128 << 20, 16 << 20, 1.0)
    assert (small.pids, small.open_files, small.network) == (256, 1024, Network.NONE)
    assert small.writable_root
    assert build(memory=3538).cpus == 2.0
    assert cpus(revision(memory=128)) == pytest.approx(0.0723, abs=0.001)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", (NOBODY, NOBODY)),
        ("root", (NOBODY, NOBODY)),
        ("0", (NOBODY, NOBODY)),
        ("0:0", (NOBODY, NOBODY)),
        ("app:app", (NOBODY, NOBODY)),
        ("1000", (1000, 1000)),
        ("1000:50", (1000, 50)),
        ("1001:0", (1001, NOBODY)),
        ("1000:users", (1000, 1000)),
        ("٣", (NOBODY, NOBODY)),
    ],
)
def test_the_user_inside_is_numeric_and_never_root(written: str, expected: tuple[int, int]) -> None:
    assert user(written) == expected


@pytest.mark.parametrize("written", ["2147483648:0", "4294967296", "1:99999999999", "9" * 1000])
def test_a_user_number_that_would_wrap_is_refused(written: str) -> None:
    with pytest.raises(ImageUnusable, match="is not a user"):
        user(written)


def test_a_user_that_is_not_kept_is_told() -> None:
    assert "runs as 65534" in user_warning("root")
    assert user_warning("") == user_warning("1000") == user_warning("65534") == ""


@pytest.mark.parametrize("folder", ["/proc/self/fd/8", "/sys", "/dev/shm", "/a/../proc", "proc/1", "//proc"])
def test_working_directories_that_reach_the_host_are_refused(folder: str) -> None:
    with pytest.raises(ImageUnusable, match="working directory"):
        build(ImageConfig(architecture(), entrypoint=("x",), workdir=folder))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (ImageConfig(architecture()), "nothing to run"),
        (ImageConfig("s390x", entrypoint=("x",)), "this machine is linux/"),
        (ImageConfig(architecture(), os="windows", entrypoint=("x",)), "for windows/"),
        (ImageConfig(architecture(), cmd=("x", "a" * 1_000_000)), "too large"),
        (ImageConfig(architecture(), cmd=("x",), env=tuple(f"V{n}={'x' * 200}" for n in range(10_000))), "too large"),
    ],
)
def test_an_image_that_can_never_run_is_refused_with_its_reason(image: ImageConfig, words: str) -> None:
    with pytest.raises(ImageUnusable, match=words):
        build(image)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ModuleNotFoundError: No module named 'PIL'", "PIL is missing: add it to requirements.txt"),
        ("Runtime.ImportModuleError: Error: Cannot find module 'sharp'", "sharp is missing: add it to package.json"),
        ("Runtime.HandlerNotFound: app.handle is undefined or not exported", "handler was not found"),
        ("AttributeError: module 'app' has no attribute 'handler'", "handler was not found"),
        ("exec /app: exec format error", "another architecture"),
        ("nginx: [emerg] bind() to 0.0.0.0:80 failed (13: Permission denied)", "listen on $PORT"),
        ("OSError: [Errno 30] Read-only file system: '/var/log/x'", "writable_root = true"),
        ("./app: error while loading shared libraries: libfoo.so.1: cannot open", "libfoo.so.1"),
        ("all is well", ""),
    ],
)
def test_what_an_instance_wrote_becomes_a_hint(text: str, words: str) -> None:
    hint = hint_from(text)
    assert words in hint
    assert bool(words) == bool(hint)


def test_an_end_in_init_is_explained() -> None:
    spec = revision(memory=200).spec
    assert ended(spec, Exit(137, 9, True), "") == (
        "init used more memory than its limit of 200 MB",
        "set memory = 448",
    )
    message, hint = ended(spec, Exit(0), "")
    assert message == "the instance ended during init: exit status 0"
    assert "must go on" in hint
    assert larger(8192) == 10_240


def test_a_wrong_port_is_found() -> None:
    spec = revision(interface="http").spec
    message, hint = not_ready(spec, spec.interface, "", [5000])
    assert message == "init did not finish within 10 s: nothing listens on port 8080, but something does on 5000"
    assert hint == "listen on $PORT, or set port = 5000"


def test_secrets_are_apart_from_the_environment_and_win_over_the_images_variables() -> None:
    image = ImageConfig(architecture(), entrypoint=("x",), env=("DB_PASSWORD=of-the-image",))
    secrets = {"db-password": Secret("geheim")}
    using = revision(secrets={"DB_PASSWORD": "db-password"})
    built = sandbox_spec(using, PreparedImage("x", image, None), "abc123", now=NOW, secrets=secrets)
    assert "geheim" not in repr(built) + repr(built.env)
    assert built.environment() == {**built.env, "DB_PASSWORD": "geheim"}
    assert built != sandbox_spec(
        using, PreparedImage("x", image, None), "abc123", now=NOW, secrets={"db-password": Secret("another")}
    )


@pytest.mark.parametrize(
    ("keys", "by_itself"),
    [({}, True), ({"command": ["more"]}, True), ({"entrypoint": ["/bin/sh"]}, False)],
)
def test_a_client_that_takes_variables_from_files_is_told_their_names_alone(
    keys: dict[str, Any], by_itself: bool
) -> None:
    image = ImageConfig(architecture(), entrypoint=("python", "/client"), labels={SECRETS_READER: "/client"})
    using = revision(secrets={"A": "a", "B": "b"}, **keys)
    secrets = {"a": Secret("1"), "b": Secret("2")}
    built = sandbox_spec(using, PreparedImage("x", image, None), "abc123", now=NOW, secrets=secrets)
    assert (built.environment().get("A"), built.env.get(SECRETS_VARIABLE)) == (
        (None, "A=a,B=b") if by_itself else ("1", None)
    )
    assert built.secrets.values == secrets
