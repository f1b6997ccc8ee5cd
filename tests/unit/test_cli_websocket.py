"""`faas websocket`: what it asks the API for, what it prints, and what it refuses itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from faas.cli.session import Session
from faas.cli.websocket import complete_websockets, websocket_rm
from tests.support.cli import CommandLine
from tests.support.fake_api import REQUEST_ID, FakeApi, Reply

API: dict[str, Any] = {
    "name": "chat",
    "namespace": "team",
    "path": "/ws/chat.team",
    "url": "ws://127.0.0.1:8080/ws/chat.team",
    "routes": {
        "$default": {"function": "hello", "response": True},
        "say": {"function": "other:prod", "response": False},
    },
    "public": True,
    "connections": 1000,
    "open": 3,
}


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        api.replies["GET", "/v1/websockets"] = Reply({"websockets": [API]})
        api.replies["PUT", "/v1/websockets/chat.team"] = Reply(API, 201)
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def test_ls_prints_each_with_its_routes(faas: CommandLine) -> None:
    header, row = faas("websocket", "ls", "--namespace", "team").out.splitlines()
    assert header.split() == ["NAME", "URL", "ROUTES", "PUBLIC", "OPEN"]
    assert row.split("  ")[0] == "chat.team"
    assert "$default=hello, say=other:prod" in row
    assert row.endswith("3 of 1000")
    assert faas.api.last("GET").query == {"namespace": "team"}


def test_put_takes_flags_a_file_and_both(faas: CommandLine) -> None:
    done = faas(
        "websocket", "put", "chat.team", "--route", "$default=hello,response", "--route", "a=b=other:prod", "--public",
        "--in-flight", "4", "--origins", "https://a.example", "--idle", "5m", "--max-message", "1000",
    )  # fmt: skip
    assert done.last_line == API["url"]
    assert faas.api.last("PUT").json() == {
        "routes": {
            "$default": {"function": "hello", "response": True},
            "a=b": {"function": "other:prod", "response": False},
        },
        "public": True,
        "in_flight": 4,
        "rules": {"websocket": {"origins": ["https://a.example"], "idle": "5m", "max_message": 1000}},
    }
    file = faas.home / "chat.toml"
    file.write_text('stage = "live"\n[routes]\n"$default" = "hello"\n[rules.websocket]\nidle = "1m"\nlifetime = "1h"\n')
    faas("websocket", "put", "chat.team", "--file", file, "--idle", "2m", "--private")
    assert faas.api.last("PUT").json() == {
        "stage": "live",
        "routes": {"$default": "hello"},
        "rules": {"websocket": {"idle": "2m", "lifetime": "1h"}},
        "public": False,
    }


@pytest.mark.parametrize("route", ["hello", "a=b,respond", "a=b,"])
def test_a_route_that_is_none_is_a_wrong_usage(faas: CommandLine, route: str) -> None:
    assert "--route must be KEY=FUNCTION" in faas("websocket", "put", "chat.team", "--route", route, code=2).err


def test_a_file_that_is_none_is_a_wrong_usage(faas: CommandLine) -> None:
    for name, text in (("a.toml", "a = "), ("a.json", "{"), ("b.json", "[]")):
        (faas.home / name).write_text(text)
        assert name in faas("websocket", "put", "chat.team", "--file", faas.home / name, code=2).err


def test_connections_are_listed_written_to_and_closed(faas: CommandLine) -> None:
    one = {"id": "c-1", "source_ip": "10.0.0.1", "connected_at": "2030-01-01T00:00:00Z",
           "last_active_at": "2030-01-01T00:00:00Z", "received": 5, "sent": 7}  # fmt: skip
    faas.api.replies["GET", "/v1/websockets/chat/connections"] = Reply({"open": 1, "connections": [one]})
    faas.api.replies["POST", "/@connections/c-1"] = Reply(b"")
    faas.api.replies["DELETE", "/@connections/c-1"] = Reply(b"", 204)
    assert faas("websocket", "connections", "chat", "-o", "name").out == "c-1\n"
    assert faas("websocket", "send", "c-1", "grüezi").out == "c-1\n"
    assert faas.api.last("POST").body == "grüezi".encode()
    assert faas.process("websocket", "send", "c-1", stdin="from standard input").code == 0
    assert faas.api.last("POST").body == b"from standard input"
    assert faas("websocket", "close", "c-1").out == "c-1\n"


def test_a_connection_that_is_gone_is_not_found(faas: CommandLine) -> None:
    error = {"code": "GoneException", "message": "there is no such connection", "hint": "", "request_id": REQUEST_ID}
    faas.api.replies["DELETE", "/@connections/c-1"] = Reply({"message": "…", "error": error}, 410)
    assert "there is no such connection" in faas("websocket", "close", "c-1", code=3).err


def test_rm_prints_what_it_deleted(faas: CommandLine) -> None:
    faas.api.replies["DELETE", "/v1/websockets/chat.team"] = Reply(None, 204)
    assert faas("websocket", "rm", "chat.team").out == "chat.team\n"


def test_names_are_completed_and_whatever_goes_wrong_gives_no_words(
    faas: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in faas.env.items():
        monkeypatch.setenv(name, value)
    parameter = websocket_rm.params[0]

    def words(begun: str) -> list[str]:
        with click.Context(websocket_rm, obj=Session()) as context:
            return [item.value for item in complete_websockets(context, parameter, begun)]

    assert words("ch") == ["chat.team"]
    assert words("x") == []
    faas.api.replies["GET", "/v1/websockets"] = Reply({"error": {}}, 500)
    assert words("ch") == []
