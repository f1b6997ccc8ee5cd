"""`faas push` against a real HTTP server that is API and registry in one: stages, tags, flags, refused starts."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import CommandLine
from tests.support.fake_api import HELLO, INFO, REQUEST_ID, TOKEN, FakeApi, Reply, Seen, refusal
from tests.support.fake_registry import FakeRegistry

URL = "http://127.0.0.1:8080/function/hello"


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def faas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, registry: FakeRegistry
) -> Iterator[CommandLine]:
    with FakeApi() as api:
        base = {"name": "python3.11", "reference": registry.add_base(), "version": "3.11", "architecture": "amd64"}
        api.otherwise = registry
        api.replies["GET", "/v1/info"] = Reply({**INFO, "registry": api.url.removeprefix("http://")})
        api.replies["PUT", "/v1/runtimes/python"] = Reply({**base, "platforms": ["manylinux_2_17_x86_64"]})
        api.replies["PUT", "/v1/functions/hello"] = deployed
        monkeypatch.chdir(tmp_path)
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def deployed(seen: Seen) -> Reply:
    check = {"interface": "lambda", "init_seconds": 0.18}
    return Reply({**HELLO, "url": URL, "warnings": [], "check": check, "public": seen.json()["spec"]["public"]}, 201)


def code(folder: Path, toml: str = "public = true") -> Path:
    target = folder / "hello"
    target.mkdir()
    (target / "app.py").write_text("def handler(event, context): ...\n")
    (target / "faas.toml").write_text(f'name = "hello"\nruntime = "python"\nhandler = "app.handler"\n{toml}\n')
    return target


def deploy_of(faas: CommandLine) -> dict[str, Any]:
    seen = next(s for s in reversed(faas.api.seen) if s.path.startswith("/v1/functions/") and s.method == "PUT")
    return seen.json()  # type: ignore[no-any-return]


def test_a_folder_is_built_pushed_deployed_and_its_url_printed_last(
    faas: CommandLine, registry: FakeRegistry, tmp_path: Path
) -> None:
    done = faas("push", code(tmp_path))
    assert done.out == URL + "\n"
    stages = [line.split()[0] for line in done.err.splitlines()]
    assert stages == ["runtime", "dependencies", "code", "upload", "deploy"]
    assert "v7, lambda, init 0.18 s" in done.err
    sent = deploy_of(faas)
    digest = registry.digest("hello", "latest")
    assert sent["image"] == f"hello@{digest}"
    assert sent["check"] is True
    assert (sent["spec"]["name"], sent["spec"]["memory"], sent["spec"]["image"]) == ("hello", 128, "")
    assert registry.digest("hello", "v7") == digest
    layers = json.loads(registry.manifests["hello", "latest"])["layers"]
    assert len(layers) == 2
    assert all(size < 20_000 for _, size in registry.uploaded)


def test_tags_are_written_once_the_deploy_is_done(faas: CommandLine, registry: FakeRegistry, tmp_path: Path) -> None:
    """So that a function that follows one of them is not deployed twice, nor to what did not start."""
    faas("push", code(tmp_path), "--follow", "latest")
    assert deploy_of(faas)["spec"]["follow"] == "latest"
    puts = [seen.path for seen in faas.api.seen if seen.method == "PUT"]
    tagged = [path for path in puts if path.startswith("/v2/hello/manifests/") and "sha256" not in path]
    assert tagged == ["/v2/hello/manifests/v7", "/v2/hello/manifests/latest"]
    assert puts.index("/v1/functions/hello") < puts.index(tagged[0])
    registry.manifests.clear()
    registry.add_base()
    faas.api.replies["PUT", "/v1/functions/hello"] = refusal(502, "Runtime.InitError", "no module named 'x'")
    faas("push", tmp_path / "hello", code=1)
    assert ("hello", "latest") not in registry.manifests


def test_the_registry_gets_the_token_as_password(faas: CommandLine, tmp_path: Path) -> None:
    import base64

    faas("push", code(tmp_path))
    asked = next(s for s in faas.api.seen if s.path.startswith("/v2/"))
    assert base64.b64decode(asked.headers["authorization"].removeprefix("Basic ")).decode() == f"admin:{TOKEN}"


def test_flags_win_over_the_file_and_namespaces_have_their_own_repositories(
    faas: CommandLine, registry: FakeRegistry, tmp_path: Path
) -> None:
    faas.api.replies["PUT", "/v1/functions/hello.team"] = deployed
    folder = code(tmp_path, 'memory = 256\n[env]\nA = "1"')
    faas("push", folder, "--namespace", "team", "--memory", 512, "--env", "B=x=y", "--scale-max", 3, "--public",
         "--schedule", "tick=*/5 * * * *", "--trigger", "/srv/in", "--command", "a 'b c'", "--scale-idle", "30s",
         "--schedule", "{name = 'tock', cron = '0 1,2 * * *', missed = 'skip'}", "--no-check",
         "--route", "GET,POST /a/{id}", "--route", "$default", "--route", "{path = '/b', timeout = '2s'}",
         "--secret", "DB=db-password")  # fmt: skip
    sent = deploy_of(faas)
    spec = sent["spec"]
    assert sent["check"] is False
    assert sent["image"].startswith("team/hello@sha256:")
    assert ("team/hello", "v7") in registry.manifests
    assert (spec["memory"], spec["env"], spec["scale"]["max"], spec["scale"]["idle"], spec["public"]) == (
        512, {"A": "1", "B": "x=y"}, 3, "30s", True,
    )  # fmt: skip
    assert [(s["name"], s["cron"], s["missed"]) for s in spec["schedule"]] == [
        ("tick", "*/5 * * * *", "once"), ("tock", "0 1,2 * * *", "skip"),
    ]  # fmt: skip
    assert spec["trigger"][0]["watch"] == "/srv/in"
    assert spec["route"] == [
        {"path": "/a/{id}", "methods": ["GET", "POST"]}, {"path": "$default"}, {"path": "/b", "timeout": "2s"},
    ]  # fmt: skip
    assert spec["command"] == ["a", "b c"]
    assert spec["secrets"] == {"DB": "db-password"}


def test_without_a_deploy_the_reference_is_printed(faas: CommandLine, registry: FakeRegistry, tmp_path: Path) -> None:
    done = faas("push", code(tmp_path), "--no-deploy")
    host = faas.api.url.removeprefix("http://")
    assert done.last_line == f"{host}/hello@{registry.digest('hello', 'latest')}"
    assert not any(s.path == "/v1/functions/hello" for s in faas.api.seen)


def test_an_image_of_the_registry_needs_no_folder(faas: CommandLine, registry: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "faas.toml").write_text('name = "other"\nruntime = "python"\n')  # of this folder: not asked for
    reference = registry.add_base("hello")
    done = faas("push", "--image", "hello:3.11", "--name", "hello")
    assert done.last_line == URL
    assert deploy_of(faas)["image"] == reference
    assert "not public" in done.err
    assert registry.digest("hello", "v7") == registry.digest("hello", "latest") == reference.partition("@")[2]


def test_an_image_of_another_repository_is_mounted_and_tagged_in_the_functions_own(
    faas: CommandLine, registry: FakeRegistry
) -> None:
    reference = registry.add_base("team/web")
    faas("push", "--image", "team/web:3.11", "--name", "hello")
    assert deploy_of(faas)["image"] == reference
    assert registry.digest("hello", "v7") == registry.digest("hello", "latest") == reference.partition("@")[2]
    assert {digest for name, digest in registry.blobs if name == "hello"} == {
        digest for name, digest in registry.blobs if name == "team/web"
    }
    assert registry.uploaded == []


def test_the_registry_is_known_by_every_name_of_this_machine(faas: CommandLine, registry: FakeRegistry) -> None:
    reference = registry.add_base("hello")
    port = faas.api.url.rpartition(":")[2]
    for host in ("localhost", "127.0.0.1", "[::1]"):
        faas("push", "--image", f"{host}:{port}/hello:3.11", "--name", "hello")
        assert deploy_of(faas)["image"] == reference


def test_a_registry_that_cannot_be_reached_ends_with_5(faas: CommandLine, tmp_path: Path) -> None:
    faas.api.replies["GET", "/v1/info"] = Reply({**INFO, "registry": "127.0.0.1:1"})
    done = faas("push", code(tmp_path), code=5)
    assert "cannot reach the registry at http://127.0.0.1:1" in done.err


def test_an_archive_that_is_cut_off_is_said_to_be(faas: CommandLine, tmp_path: Path) -> None:
    donor = FakeRegistry()
    donor.add_base("x")
    oci_archive(donor, tmp_path / "image.tar", "")
    whole = (tmp_path / "image.tar").read_bytes()
    compressed = gzip.compress(whole)
    for data in (whole[: whole.index(b"base layer") + 4], compressed[: len(compressed) // 2]):
        (tmp_path / "cut.tar").write_bytes(data)
        done = faas("push", "--image", tmp_path / "cut.tar", "--name", "hello", code=2)
        assert "damaged or cut off" in done.err


@pytest.mark.parametrize("prefix", ["", "./"], ids=["skopeo", "tar -c ."])
def test_an_archive_named_in_the_file_is_relative_to_it(
    faas: CommandLine, registry: FakeRegistry, tmp_path: Path, prefix: str
) -> None:
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "faas.toml").write_text('name = "hello"\nimage = "image.tar"\n')
    donor = FakeRegistry()
    donor.add_base("x")
    oci_archive(donor, folder / "image.tar", prefix)
    assert faas("push", folder).last_line == URL
    assert deploy_of(faas)["image"].startswith("hello@sha256:")
    assert deploy_of(faas)["spec"]["image"] == ""


def oci_archive(donor: FakeRegistry, path: Path, prefix: str) -> None:
    """What skopeo writes for `oci-archive:`, its names after `prefix`."""
    raw, digest = donor.manifests["x", "3.11"], donor.digest("x", "3.11")
    descriptor = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": len(raw),
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [descriptor]}).encode(),
        "blobs/sha256/" + digest.partition(":")[2]: raw,
        **{"blobs/sha256/" + name.partition(":")[2]: data for (_, name), data in donor.blobs.items()},
    }
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_an_archive_of_files_is_not_taken_for_an_image(faas: CommandLine, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "exported.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("etc/passwd"))
    done = faas("push", "--image", tmp_path / "exported.tar", "--name", "hello", code=2)
    assert "docker save" in done.err


def test_a_start_that_fails_shows_the_diagnosis_and_what_the_function_wrote(faas: CommandLine, tmp_path: Path) -> None:
    faas.api.replies["PUT", "/v1/functions/hello"] = refusal(
        502,
        "Runtime.InitError",
        "no module named 'x'",
        "add x to requirements.txt",
        log_tail="Traceback\nboom\n",
    )
    done = faas("push", code(tmp_path), code=1)
    assert done.out == ""
    assert "  deploy" in done.err
    assert "failed" in done.err
    assert "  | boom\nerror: no module named 'x'\n  add x to requirements.txt\n" in done.err
    assert done.err.endswith(f"  request id {REQUEST_ID}\n")  # it never ran: no log has it


def test_the_servers_warnings_are_shown(faas: CommandLine, tmp_path: Path) -> None:
    faas.api.replies["PUT", "/v1/functions/hello"] = Reply({**HELLO, "warnings": ["old \x1b[31mbase"]}, 201)
    assert "warning: old \\x1b[31mbase" in faas("push", code(tmp_path)).err


@pytest.mark.parametrize(
    ("toml", "flags", "code_", "words"),
    [
        ("memroy = 1", (), 2, "faas.toml:4: unknown key memroy"),
        ("", ("--memory", "1"), 2, "--memory: memory must be a whole number from 128"),
        ('[[schedule]]\nname = "a"\ncron = "0 0 * * * *"', (), 2, "faas.toml:6: schedule[0].cron must be"),
        ('[secrets]\nA = "A!"', (), 2, "must be the name of a stored secret"),
        ("", ("--env", "NOVALUE"), 2, "--env must be NAME=VALUE"),
        ("", ("--secret", "NOVALUE"), 2, "--secret must be VARIABLE=NAME"),
        ("", ("--schedule", "daily"), 2, "--schedule must be NAME=CRON"),
        ("", ("--schedule", "{name"), 2, "--schedule is no TOML table"),
        ("", ("--command", "'open"), 2, "--command"),
        ("", ("--namespace", "No"), 2, "no namespace"),
        ("", ("--network", "host"), 2, "--network"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_sent(
    faas: CommandLine, tmp_path: Path, toml: str, flags: tuple[str, ...], code_: int, words: str
) -> None:
    done = faas("push", code(tmp_path, toml), *flags, code=code_)
    assert words in done.err
    assert faas.api.seen == []


def test_a_folder_that_does_not_say_what_runs_is_refused(faas: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "faas.toml").write_text('name = "hello"\n')
    done = faas("push", code=2)
    assert "nothing says what to run" in done.err
    assert "Dockerfile" in done.err


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('runtime = "python"\nhandler = "app.handler"', "faas.toml:2: the folder has a Dockerfile"),
        ('handler = "app.handler"', "faas.toml:2: handler is for a folder of code: it needs a runtime"),
        ('app = "main:app"', "faas.toml:2: app is for a folder of code: it needs a runtime"),
    ],
)
def test_what_a_dockerfile_would_leave_unused_is_refused(
    faas: CommandLine, tmp_path: Path, toml: str, words: str
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "faas.toml").write_text(f'name = "hello"\n{toml}\n')
    assert words in faas("push", code=2).err
    assert faas.api.seen == []


def test_a_folder_without_a_file_says_how_to_begin(faas: CommandLine) -> None:
    assert "faas new" in faas("push", code=3).err


def test_every_key_of_the_spec_has_a_flag_with_a_help_text() -> None:
    from faas.cli.push import push
    from faas.cli.spec_options import ARRAYS, HELP, TABLES, keys, parameter
    from faas.spec import FunctionSpec
    from faas.spec_file import flag_name

    outside = FunctionSpec("x").to_dict()
    expected = {k for k in outside if k not in TABLES} | {f"{t}.{k}" for t in TABLES for k in outside[t]}
    assert {key for key, _ in keys()} == expected == set(HELP)
    assert set(ARRAYS) < expected
    parameters = {p.name: p for p in push.params}
    for key in expected:
        assert flag_name(key) in parameters[parameter(key)].opts
