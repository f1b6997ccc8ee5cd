"""`faas alias NAME ALIAS --weight v7=10`, in each of its forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import CommandLine
from tests.support.fake_api import HELLO, FakeApi, Reply

LIVE = ("PUT", "/v1/functions/hello/aliases/live")
CANARY = {"weights": {"v7": 10}, "sticky": "cookie", "override": False, "rollback": "errors=5%,least=50,window=5m",
          "began_at": "2030-01-02T03:04:05.000Z", "ended_at": None, "reason": ""}  # fmt: skip
WEIGHT = ("--weight", "v7=10")


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (("hello", "live", *WEIGHT), {"weights": {"v7": 10}}),
        (("weight", "hello", "live", *WEIGHT), {"weights": {"v7": 10}}),
        (("hello", "live", "v6", *WEIGHT), {"weights": {"v7": 10}, "revision": 6}),
        (("hello", "live", "--weight", "7=2.5%"), {"weights": {"v7": 2.5}}),
        (("hello", "live", *WEIGHT, "--rollback", "errors=5%", "--sticky", "cookie", "--override"),
         {"weights": {"v7": 10}, "rollback": "errors=5%", "sticky": "cookie", "override": True}),
        (("hello", "live", *WEIGHT, "--no-override"), {"weights": {"v7": 10}, "override": False}),
        (("hello", "live", "--promote"), {"promote": True}),
        (("hello", "live", "--clear"), {"weights": {}}),
        (("hello", "live", "v6"), {"revision": 6}),
        (("live", *WEIGHT), {"weights": {"v7": 10}}),
        (("live", "v6", *WEIGHT), {"weights": {"v7": 10}, "revision": 6}),
    ],
)  # fmt: skip
def test_what_is_written_is_what_is_sent(
    faas: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sent: Any
) -> None:
    (tmp_path / "faas.toml").write_text('name = "hello"\n')
    monkeypatch.chdir(tmp_path)
    faas.api.replies[LIVE] = Reply({"alias": "live", "revision": 6, **CANARY})
    done = faas("alias", *words)
    assert done.last_line == "hello:live"
    assert "live of hello is v6; v7 has 10 %, sticky by cookie; taken back at errors=5%" in done.err
    assert faas.api.last("PUT").json() == sent


@pytest.mark.parametrize(
    "words",
    [("hello", "live"), ("live", *WEIGHT), ("hello", "live", "--weight", "v7"), ("hello", "live", "--weight", "v7=101"),
     ("hello", "live", "--sticky", "cookie"), ("hello", "live", *WEIGHT, "--promote"),
     ("hello", "live", "v6", "--promote"), ("hello", "live", "--promote", "--clear"), ("a", "b", "c", *WEIGHT)],
)  # fmt: skip
def test_what_makes_no_sense_is_a_usage_error(
    faas: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)  # there is no faas.toml
    assert "error: " in faas("alias", *words, code=2).err


def test_ls_and_describe_say_how_a_canary_goes_and_why_it_was_taken_back(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/functions/hello"] = Reply({**HELLO, "canaries": {"live": CANARY}})
    assert (
        "  Canary       live: v7 has 10 %, sticky by cookie; taken back at errors=5%" in faas("describe", "hello").out
    )
    assert "v7 has 10 %" in faas("alias", "ls", "hello").out
    ended = {**CANARY, "weights": {"v7": 0}, "ended_at": "2020-01-01T00:00:00Z", "reason": "50.0 % \x1b[31m failed"}
    faas.api.replies["GET", "/v1/functions/hello"] = Reply({**HELLO, "canaries": {"live": ended}})
    page = faas("describe", "hello").out
    assert "live: v7 was taken back" in page
    assert "50.0 % " in page
    assert "\x1b[31m" not in page
