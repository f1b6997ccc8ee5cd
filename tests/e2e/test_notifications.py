"""`deploy/howto/notifications.md`: its commands against a real server, with receivers on loopback; and one event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.control import serving, until
from tests.support.howto import HowTo
from tests.support.mail_server import PASSWORD, mail_server
from tests.support.server import RunningServer

pytestmark = [pytest.mark.root, pytest.mark.oci]


@pytest.fixture
async def hook() -> AsyncIterator[tuple[str, list[Any]]]:
    came: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        came.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/faas", take)
    async with serving(app) as url:
        yield url, came


async def test_the_how_tos_commands_reach_a_hook_and_a_mailbox_and_a_dead_letter_is_told(
    server: RunningServer, project_root: Path, tmp_path: Path, hook: tuple[str, list[Any]]
) -> None:
    url, came = hook
    page = HowTo(project_root / "deploy" / "howto" / "notifications.md", server)
    (tmp_path / "password.txt").write_text(PASSWORD)
    toml = '[async]\nretries = 0\non_failure = "dlq"'
    code = "def handler(event, context):\n    raise ValueError('notified')\n"
    await asyncio.to_thread(server.push_code, tmp_path, "notified", code, toml)
    async with mail_server(tmp_path, login=True) as mailbox:
        (tmp_path / "ca.pem").write_text(mailbox.ca)
        for block in page.blocks()[:2]:
            here = block.replace("https://hooks.example.com", url)
            here = here.replace("smtp.example.com", f"127.0.0.1:{mailbox.port} --ca ca.pem")
            await asyncio.to_thread(page.run, here, tmp_path)
        assert [receivers for receivers, _ in mailbox.came] == [["ops@example.com"]]
    assert came[0]["test"] is True
    answered = await asyncio.to_thread(server.request, "POST", "/async-function/notified")
    assert answered.status == 202
    told = await until(lambda: [one for body in came for one in body["items"] if one["subject"] == "notified"], 40)
    assert told[0]["look"] == "faas dlq ls notified"
    assert (tmp_path / "ops.secret").read_text().strip() not in json.dumps(came)
    await asyncio.to_thread(page.run, page.blocks()[2], tmp_path)
    await asyncio.to_thread(server.faas, "secret", "rm", "mail-password")
