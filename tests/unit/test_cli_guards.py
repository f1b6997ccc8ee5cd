"""`faas plan` and `faas maintenance`, against what the API was sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import CommandLine
from tests.support.fake_api import FakeApi, Reply

GOLD = {"name": "gold", "namespace": "default", "rate": 5.0, "burst": 10, "quota": 1000, "period": "day",
        "functions": ["hello"], "apis": ["shop"]}  # fmt: skip
NOTICE = {"name": "hello", "namespace": "default", "all": False, "message": "back soon", "retry_after": 60,
          "since": "2030-01-02T03:04:05Z", "by": "admin"}  # fmt: skip


@pytest.fixture
def faas(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CommandLine]:
    with FakeApi() as api:
        yield CommandLine(api, tmp_path, capsys, monkeypatch)


def test_plans_are_listed_set_shown_and_removed(faas: CommandLine) -> None:
    faas.api.replies["GET", "/v1/plans"] = Reply({"plans": [GOLD]})
    assert faas("plan", "ls").out.splitlines()[1].split("  ")[0] == "gold"
    assert "5/s, 10 at once" in faas("plan", "ls").out
    assert faas("plan", "ls", "-o", "name").out == "gold\n"
    faas.api.replies["PUT", "/v1/plans/gold"] = Reply(GOLD, 201)
    options = (
        "--rate",
        "5",
        "--burst",
        "10",
        "--quota",
        "1000",
        "--period",
        "day",
        "--function",
        "hello",
        "--api",
        "shop",
    )
    assert faas("plan", "set", "gold", *options).out == "gold\n"
    wish = {key: value for key, value in GOLD.items() if key not in ("name", "namespace")}
    assert faas.api.last("PUT").json() == wish
    rows = [{"key": "k1", "name": "partner", "used": 7, "left": 993}]
    times = {"since": "2030-01-02T00:00:00Z", "resets_at": "2030-01-03T00:00:00Z"}
    usage = {"plan": "gold", "period": "day", "quota": 1000, "usage": rows, **times}
    faas.api.replies["GET", "/v1/plans/gold/usage"] = Reply(usage)
    shown = faas("plan", "usage", "gold", "--key", "partner")
    assert faas.api.last("GET").query == {"key": "partner"}
    assert shown.out.splitlines()[1].split() == ["partner", "7", "993"]
    faas.api.replies["DELETE", "/v1/plans/gold.team"] = Reply(status=204)
    assert faas("plan", "rm", "gold.team").out == "gold.team\n"


@pytest.mark.parametrize("options", [[], ["--burst", "3", "--quota", "1"], ["--quota", "1", "--period", "year"]])
def test_a_plan_without_a_clear_limit_is_not_sent(faas: CommandLine, options: list[str]) -> None:
    faas("plan", "set", "gold", *options, code=2)
    assert faas.api.seen == []


def test_maintenance_is_begun_listed_and_ended(faas: CommandLine) -> None:
    faas.api.replies["PUT", "/v1/maintenance/hello"] = Reply(NOTICE, 201)
    begun = faas("maintenance", "on", "--function", "hello", "--message", "back soon")
    assert (begun.out, begun.err) == ("hello\n", "callers are told: back soon\n")
    assert faas.api.last("PUT").json() == {"retry_after": 60, "message": "back soon"}
    faas.api.replies["PUT", "/v1/maintenance/*"] = Reply({**NOTICE, "all": True}, 201)
    assert faas("maintenance", "on", "--all", "--retry-after", "5").out == "*\n"
    faas.api.replies["GET", "/v1/maintenance"] = Reply({"maintenance": [{**NOTICE, "all": True}, NOTICE]})
    assert faas("maintenance", "ls", "-o", "name").out == "*\nhello\n"
    faas.api.replies["DELETE", "/v1/maintenance/*"] = Reply(status=204)
    assert faas("maintenance", "off", "--all").out == "*\n"


@pytest.mark.parametrize("verb", ["on", "off"])
@pytest.mark.parametrize("options", [[], ["--all", "--function", "hello"]])
def test_maintenance_is_of_one_function_or_of_all(faas: CommandLine, verb: str, options: list[str]) -> None:
    assert "--function NAME, or --all" in faas("maintenance", verb, *options, code=2).err
