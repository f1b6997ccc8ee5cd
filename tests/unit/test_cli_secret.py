"""`faas secret`: how a value comes in, and that it goes nowhere but to the server."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import CommandLine
from tests.support.fake_api import FakeApi, Reply

MADE: dict[str, Any] = {
    "name": "db-password", "namespace": "default", "version": 2, "set_at": "2030-01-02T03:04:05Z", "set_by": "admin",
    "state": "ready", "functions": ["hello"], "replaced": [], "kept": [],
}  # fmt: skip


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        api.replies["PUT", "/v1/secrets/db-password"] = Reply(MADE)
        api.replies["GET", "/v1/secrets"] = Reply({"secrets": [MADE]})
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def test_a_value_comes_from_standard_input_or_a_file_and_is_not_printed(faas: CommandLine, tmp_path: Path) -> None:
    done = faas.process("secret", "set", "db-password", stdin="geheim\n")
    assert (done.code, done.out, done.err) == (0, "db-password\n", "version 2; used by hello\n")
    assert faas.api.last("PUT").json() == {"value": "geheim", "now": False}
    (tmp_path / "pem").write_bytes(b"line 1\r\nline 2\n")
    faas("secret", "set", "db-password", "--file", tmp_path / "pem", "--now")
    assert faas.api.last("PUT").json() == {"value": "line 1\r\nline 2\n", "now": True}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "not empty"), (b"\xff", "UTF-8"), (b"a\0b", "null character"), (b"x" * 65_537, "at most 65536 bytes")],
)
def test_what_can_be_no_secret_is_refused_before_it_is_sent(
    faas: CommandLine, tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "value").write_bytes(content)
    done = faas("secret", "set", "db-password", "--file", tmp_path / "value", code=2)
    assert words in done.err
    assert len(done.err) < 300
    assert not [seen for seen in faas.api.seen if seen.method == "PUT"]


def test_a_value_is_no_argument(faas: CommandLine) -> None:
    assert faas("secret", "set", "db-password", "geheim", code=2).out == ""
    assert not [seen for seen in faas.api.seen if seen.method == "PUT"]


def test_at_a_terminal_it_is_asked_for_twice_and_not_shown(faas: CommandLine) -> None:
    master, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            faas.command("secret", "set", "db-password"), env=faas.environment(), stdin=terminal, stderr=terminal,
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        shown = b""
        for prompt in (b"Value", b"Repeat"):
            shown += _until(master, prompt)
            time.sleep(0.2)  # the terminal's echo is turned off after the prompt has come
            os.write(master, b"geheim\n")
        assert process.communicate(timeout=30)[0] == b"db-password\n"
        shown += _until(master, b"used by hello")
    finally:
        os.close(master)
    assert b"geheim" not in shown
    assert faas.api.last("PUT").json()["value"] == "geheim"


def _until(terminal: int, words: bytes) -> bytes:
    shown, deadline = b"", time.monotonic() + 20
    while words not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 1)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
    return shown


def test_what_was_replaced_is_said_and_what_keeps_the_old_value_is_a_failure(faas: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "value").write_text("x")
    told = {"replaced": [{"revision": "hello@v1", "instances": 3}], "kept": [{"revision": "other@v2", "error": "boom"}]}
    faas.api.replies["PUT", "/v1/secrets/db-password"] = Reply({**MADE, **told})
    done = faas("secret", "set", "db-password", "--now", "--file", tmp_path / "value", code=1)
    assert "hello@v1: 3 replaced" in done.err
    assert "other@v2: boom" in done.err


def test_secrets_are_listed_removed_and_completed_by_name_and_the_key_is_changed(faas: CommandLine) -> None:
    assert re.search(r"db-password +2 +ready +hello +admin", faas("secret", "ls").out)
    assert faas("secret", "ls", "-o", "name").out == "db-password\n"
    assert json.loads(faas("secret", "ls", "-o", "json", "--namespace", "team").out) == [MADE]
    assert faas.api.last("GET").query == {"namespace": "team"}
    completing = {"_FAAS_COMPLETE": "bash_complete", "COMP_WORDS": "faas secret rm d", "COMP_CWORD": "3"}
    assert faas.process(**completing).out == "plain,db-password\n"
    faas.api.replies["DELETE", "/v1/secrets/db-password"] = Reply(status=204)
    assert faas("secret", "rm", "db-password").out == "db-password\n"
    assert faas.api.last("DELETE").query == {}
    faas("secret", "rm", "db-password", "--force")
    assert faas.api.last("DELETE").query == {"force": "1"}
    faas.api.replies["POST", "/v1/secrets-key/rotate"] = Reply({"secrets": 4})
    assert faas("secret", "rotate-key").out == "4\n"


def test_describe_shows_which_secrets_by_name(faas: CommandLine) -> None:
    from tests.support.fake_api import HELLO

    spec = {**HELLO["spec"], "secrets": {"DB_PASSWORD": "db-password"}}
    faas.api.replies["GET", "/v1/functions/hello"] = Reply({**HELLO, "spec": spec})
    assert re.search(r"Secrets +DB_PASSWORD = db-password", faas("describe", "hello").out)
