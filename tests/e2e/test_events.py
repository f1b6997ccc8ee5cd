"""Work that nobody waits for: asynchronous invocations, dead letters, schedules, a watched folder."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from PIL import Image

from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]


def until(look: Callable[[], Any], seconds: float = 30) -> Any:
    """What `look` finds, once it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "nothing was found in time"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="module", autouse=True)
def ticking(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A function with a schedule; the minute until it fires is that of the tests before the one that looks."""
    toml = '[[schedule]]\nname = "tick"\ncron = "* * * * *"\ninput = { kind = "tick" }'
    code = "def handler(event, context):\n    print('TICK', event['kind'])\n"
    server.push_code(tmp_path_factory.mktemp("ticking"), "ticking", code, toml)


def test_an_asynchronous_invocation_answers_202_and_runs(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "later", "def handler(event, context):\n    print('RAN', event['body'])\n")
    answer = server.request("POST", "/async-function/later", b"hi", {"Content-Type": "text/plain"})
    assert answer.status == 202
    assert answer.headers["X-Call-Id"]
    until(lambda: "RAN hi" in server.faas("logs", "later").stdout)


def test_an_event_over_the_limit_is_refused(server: RunningServer, tmp_path: Path) -> None:
    server.push_code(tmp_path, "large", "def handler(event, context): ...\n")
    assert server.request("POST", "/async-function/large", b"x" * 1_048_577).status == 413


def test_a_failing_event_ends_as_a_dead_letter_that_can_be_read_and_retried(
    server: RunningServer, tmp_path: Path
) -> None:
    code = "def handler(event, context):\n    raise RuntimeError('never works')\n"
    server.push_code(tmp_path, "doomed", code, '[async]\nretries = 0\non_failure = "dlq"')
    server.request("POST", "/async-function/doomed", b"payload", {"Content-Type": "text/plain"})

    def letters() -> list[dict[str, Any]]:
        return json.loads(server.faas("dlq", "ls", "-o", "json").stdout)  # type: ignore[no-any-return]

    letter = until(lambda: [row for row in letters() if row["function"] == "doomed"])[0]
    assert letter["error_type"] == "RuntimeError"
    assert "payload" in server.faas("dlq", "show", letter["id"]).stdout
    server.push_code(tmp_path, "doomed", "def handler(event, context):\n    print('RAN again')\n")
    server.faas("dlq", "retry", letter["id"])
    until(lambda: "RAN again" in server.faas("logs", "doomed").stdout)
    until(lambda: not [row for row in letters() if row["function"] == "doomed"])


def test_the_nightly_report_is_scheduled_in_its_own_zone_and_runs_on_its_input(
    server: RunningServer, project_root: Path
) -> None:
    server.faas("push", project_root / "tests" / "functions" / "report")
    listed = json.loads(server.faas("schedule", "ls", "-o", "json").stdout)
    row = next(r for r in listed if r["function"] == "report")
    berlin = datetime.fromisoformat(row["next"][0]).astimezone(ZoneInfo("Europe/Berlin"))
    assert (row["name"], row["timezone"], f"{berlin:%H:%M}") == ("nightly", "Europe/Berlin", "02:00")
    done = server.faas("invoke", "report", "--async", "--data", '{"kind": "nightly"}')
    assert done.returncode == 0
    until(lambda: '"report": "nightly"' in server.faas("logs", "report").stdout)


def test_a_folder_outside_the_roots_is_refused_with_the_settings_name(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def handler(event, context): ...\n")
    (tmp_path / "faas.toml").write_text(
        'name = "prying"\nruntime = "python"\nhandler = "app.handler"\n[[trigger]]\nwatch = "/home/alice"\n'
    )
    refused = server.faas("push", tmp_path, check=False)
    assert refused.returncode == 2
    for words in ("/home/alice must not be watched", "FAAS_TRIGGER_ROOTS", "config.toml"):
        assert words in refused.stderr


@pytest.mark.parametrize("cron", ["0 0 * * * *", "61 * * * *", "whenever"])
def test_a_cron_expression_that_is_not_five_valid_fields_is_refused(
    server: RunningServer, tmp_path: Path, cron: str
) -> None:
    (tmp_path / "app.py").write_text("def handler(event, context): ...\n")
    (tmp_path / "faas.toml").write_text(
        f'name = "wrong"\nruntime = "python"\nhandler = "app.handler"\n[[schedule]]\nname = "x"\ncron = "{cron}"\n'
    )
    done = server.faas("push", tmp_path, check=False)
    assert done.returncode in (1, 2)
    assert "faas.toml:6" in done.stderr


@pytest.mark.timeout(180)
def test_a_photo_dropped_into_a_watched_folder_becomes_a_thumbnail_also_after_downtime(
    tmp_path: Path, project_root: Path
) -> None:
    sample = project_root / "tests" / "functions" / "thumbnail"
    photo = (sample / "photo.jpg").read_bytes()
    watched = tmp_path / "photos"
    watched.mkdir()
    tmp_path.chmod(0o755)
    watched.chmod(0o777)  # the server's account reads and writes there
    code = tmp_path / "thumbnail"
    code.mkdir()
    for source in sample.iterdir():
        if source.is_file() and source.name != "faas.toml":
            (code / source.name).write_bytes(source.read_bytes())
    toml = (sample / "faas.toml").read_text()
    (code / "faas.toml").write_text(f'{toml}\n[[trigger]]\nwatch = "{watched}"\npattern = "*.jpg"\n')
    server = RunningServer(tmp_path / "data", "--driver", "oci", "--trigger-roots", str(tmp_path)).start()

    def thumbnails() -> list[Path]:
        return sorted(p for p in watched.iterdir() if "thumb" in p.name and not p.name.startswith("."))

    try:
        server.faas("push", code)
        (watched / "first.jpg").write_bytes(photo)
        until(lambda: len(thumbnails()) == 1)
        server.stop()
        (watched / "second.jpg").write_bytes(photo)
        (watched / "notes.txt").write_text("not a photo")
        server.start()
        until(lambda: len(thumbnails()) == 2)
        time.sleep(2)
        assert len(thumbnails()) == 2
        for made in thumbnails():
            assert max(Image.open(io.BytesIO(made.read_bytes())).size) < max(Image.open(io.BytesIO(photo)).size)
        ran = server.faas("logs", "thumbnail").stdout.count("START RequestId")
        assert ran == 2
    finally:
        server.stop()


@pytest.mark.timeout(150)
def test_a_schedule_fires_and_its_history_says_so(server: RunningServer) -> None:
    listed = json.loads(server.faas("schedule", "ls", "-o", "json").stdout)
    row = next(r for r in listed if r["function"] == "ticking")
    assert row["next"]
    until(lambda: "TICK tick" in server.faas("logs", "ticking").stdout, 75)

    def statuses() -> set[str]:
        history = json.loads(server.faas("schedule", "history", "ticking", "tick", "-o", "json").stdout)
        return {fire["status"] for fire in history}

    until(lambda: statuses() == {"success"})
