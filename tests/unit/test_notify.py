"""Notifications on their way: a keeper with a made-up clock, a real database, and real HTTP and SMTP receivers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message as Mail
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from faas.errors import Conflict, NotFound, Unavailable
from faas.metrics import Metrics
from faas.secret import Secret
from faas.state.session import Database
from gateway.notify import mail as mails
from gateway.notify import message as messages
from gateway.notify.facts import Facts, Seen
from gateway.notify.keeper import GAP_SECONDS, LOOK_SECONDS, MOST_TARGETS, Keeper
from gateway.notify.senders import Senders
from gateway.notify.subjects import Kind, Observation, Severity, Subject
from gateway.notify.target import Mail as ByMail
from gateway.notify.target import parse
from tests.support.control import serving, until
from tests.support.data_path import sample
from tests.support.mail_server import PASSWORD, USER, mail_server

KEY = "a-key-that-signs"
SECRETS = {"key": KEY, "password": PASSWORD}


def value_of(namespace: str, name: str) -> Secret:
    if name not in SECRETS:
        raise NotFound(f"there is no secret {name}")
    return Secret(SECRETS[name])


@dataclass
class Receiver:
    """What was posted, as (headers, body); `status` is what it answers."""

    url: str = ""
    status: int = 200
    came: list[tuple[Any, bytes]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.came.append((request.headers.copy(), await request.read()))
        return web.Response(status=self.status, headers={"Location": "/elsewhere"})

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.came]


class Looked(Facts):
    """What is wrong is what the test says; a kind that is in `unknown` cannot be looked at."""

    def __init__(self) -> None:
        self.wrong: list[Observation] = []
        self.unknown: set[Kind] = set()

    async def look(self, kinds: Collection[Kind], now: float) -> Seen:
        return {
            kind: [one for one in self.wrong if one.subject.kind is kind] for kind in kinds if kind not in self.unknown
        }


@dataclass
class World:
    keeper: Keeper
    looked: Looked
    metrics: Metrics
    database: Database
    now: float = 2e9

    async def look(self, times: int = 1) -> None:
        """So many looks, each of them ten seconds after the one before, and all that they send."""
        for _ in range(times):
            self.now += LOOK_SECONDS
            await self.keeper.tick()
            await until(lambda: not any(one.sending for one in self.keeper.every()))


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made, app = Receiver(), web.Application()
    app.router.add_post("/{path:.*}", made.take)
    async with serving(app) as url:
        made.url = f"{url}/hook/that-nobody-knows"
        yield made


@asynccontextmanager
async def world(folder: Path, *, allow_private: bool = True, now: float = 2e9) -> AsyncIterator[World]:
    database = await Database.open(f"sqlite+aiosqlite:///{folder / 'faas.db'}")
    looked, metrics = Looked(), Metrics("test")
    senders = Senders(value_of, allow_private=allow_private)
    keeper = Keeper(database, looked, senders, metrics, "https://faas.example.com", clock=lambda: made.now)
    made = World(keeper, looked, metrics, database, now)
    await keeper.start()
    await keeper._loop.cancel()  # the test says when it looks
    try:
        yield made
    finally:
        await keeper.stop()
        await database.close()


def hook(url: str, name: str = "ops", **more: Any) -> Any:
    body = {"webhook": {"url": url, "signing_secret": "key"}, **more}
    return parse("default", name, body, allow_private=True)


def letter(name: str = "hello", severity: Severity = Severity.WARNING) -> Observation:
    subject = Subject(Kind.DEAD_LETTER, "default", name)
    return Observation(subject, severity, "1 event was given up", f"faas dlq ls {name}")


async def test_a_webhook_hears_once_in_what_words_since_when_and_that_it_is_over(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with world(tmp_path) as here:
        await here.keeper.put(hook(receiver.url))
        here.looked.wrong = [letter()]
        await here.look(20)
        here.looked.wrong = []
        await here.look(40)
        assert [body["items"][0]["state"] for body in receiver.bodies] == ["firing", "resolved"]
        first, last = receiver.bodies
        assert first["items"] == [
            {
                "state": "firing", "kind": "dead-letter", "subject": "hello", "namespace": "default",
                "severity": "warning", "since": "2033-05-18T03:33:30.000Z", "until": None, "told_before": 0,
                "summary": "1 event was given up", "look": "faas dlq ls hello",
            }
        ]  # fmt: skip
        assert first["title"] == "[faas] 1 firing: hello"
        assert "look closer: faas dlq ls hello" in first["text"]
        assert (first["server"], first["target"], first["test"]) == ("https://faas.example.com", "ops", False)
        assert last["items"][0]["until"] == "2033-05-18T03:41:40.000Z"
        assert sample(here.metrics, "faas_notifications_total", kind="webhook", outcome="sent") == 2


async def test_what_was_sent_is_signed_with_its_time(tmp_path: Path, receiver: Receiver) -> None:
    async with world(tmp_path) as here:
        await here.keeper.put(hook(receiver.url))
        await here.keeper.test("default", "ops")
        ((headers, body),) = receiver.came
        parts = dict(part.split("=", 1) for part in headers["X-Faas-Signature"].split(","))
        expected = hmac.new(KEY.encode(), f"{parts['t']}.".encode() + body, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(parts["v1"], expected)
        assert int(parts["t"]) == int(here.now)
        assert headers["X-Faas-Notification-Id"] == json.loads(body)["id"]
        assert json.loads(body)["test"] is True
        assert KEY.encode() not in body


async def test_many_subjects_go_together_and_a_target_has_one_message_a_minute(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with world(tmp_path) as here:
        await here.keeper.put(hook(receiver.url))
        here.looked.wrong = [letter(f"f{number}") for number in range(70)]
        await here.look()
        here.looked.wrong += [letter("late"), letter("later")]
        await here.look(int(GAP_SECONDS / LOOK_SECONDS) - 1)
        assert len(receiver.came) == 1
        await here.look()
        first, second = receiver.bodies
        assert (first["firing"], len(first["items"]), first["left_out"]) == (70, 50, 20)
        assert first["title"] == "[faas] 70 firing: f0 and 69 more"
        assert {item["subject"] for item in second["items"]} == {"late", "later"}


async def test_what_was_not_taken_is_tried_again_later_and_later_and_is_said_again_as_it_is_then(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with world(tmp_path) as here:
        await here.keeper.put(hook(receiver.url))
        receiver.status = 302  # and is followed nowhere
        here.looked.wrong = [letter()]
        await here.look(16)  # tries at 0, 10, 30, 70 and 150 seconds
        assert len(receiver.came) == 5
        assert len({body["id"] for body in receiver.bodies}) == 1, "a receiver knows it again"
        watched = here.keeper.get("default", "ops")
        assert "302" in watched.error
        assert "nobody-knows" not in watched.error
        receiver.status = 200
        here.looked.wrong = [letter(), letter("other")]
        await here.look(16)
        assert {item["subject"] for item in receiver.bodies[-1]["items"]} == {"hello", "other"}
        assert len(receiver.came) == 6
        assert (watched.error, watched.failures) == ("", 0)
        assert sample(here.metrics, "faas_notifications_total", kind="webhook", outcome="failed") == 5


async def test_over_a_restart_nothing_is_told_twice_and_no_end_is_lost(tmp_path: Path, receiver: Receiver) -> None:
    async with world(tmp_path) as here:
        await here.keeper.put(hook(receiver.url))
        here.looked.wrong = [letter(), letter("mended-meanwhile")]
        await here.look()
    async with world(tmp_path, now=here.now + 60) as here:
        here.looked.wrong = [letter()]
        await here.look(29)
        assert len(receiver.came) == 1
        await here.look(2)
        ((item,), count) = receiver.bodies[-1]["items"], len(receiver.came)
        assert (item["state"], item["subject"], count) == ("resolved", "mended-meanwhile", 2)
    async with world(tmp_path, now=here.now) as here:
        assert [one.known.keys() for one in here.keeper.every()] != []
        await here.keeper.remove("default", "ops")
    async with world(tmp_path) as here:
        assert here.keeper.every() == []


async def test_what_cannot_be_looked_at_is_neither_begun_nor_over(tmp_path: Path, receiver: Receiver) -> None:
    async with world(tmp_path) as here:
        await here.keeper.put(hook(receiver.url))
        here.looked.wrong = [letter()]
        await here.look()
        here.looked.wrong, here.looked.unknown = [], {Kind.DEAD_LETTER}
        await here.look(100)
        assert len(receiver.came) == 1


async def test_where_the_database_takes_nothing_people_are_told_all_the_same(
    tmp_path: Path, receiver: Receiver
) -> None:
    async with world(tmp_path) as here:
        await here.keeper.put(hook(receiver.url))
        async with here.database.write() as tx:
            await tx.exec_driver_sql("ALTER TABLE notification_states RENAME TO gone")
        here.looked.wrong = [letter()]
        await here.look(5)
        assert len(receiver.came) == 1
        async with here.database.write() as tx:
            await tx.exec_driver_sql("ALTER TABLE gone RENAME TO notification_states")
        await here.look()
        async with here.database.read() as tx:
            assert (await tx.exec_driver_sql("SELECT count(*) FROM notification_states")).scalar() == 1


async def test_a_target_hears_of_what_it_asked_for_and_minds_so_many_failures(
    tmp_path: Path, receiver: Receiver
) -> None:
    def failing(share: float, namespace: str = "default") -> Observation:
        subject = Subject(Kind.FUNCTION, namespace, f"f{share}")
        return Observation(subject, Severity.WARNING, "some failed", "faas logs", share)

    async with world(tmp_path) as here:
        await here.keeper.put(hook(receiver.url, on=["function"], errors=40))
        here.looked.wrong = [letter(), failing(0.39), failing(0.4), failing(0.9, "team")]
        await here.look(4)
        assert [item["subject"] for body in receiver.bodies for item in body["items"]] == ["f0.4"]


async def test_a_namespace_has_so_many_targets_and_no_more(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for number in range(MOST_TARGETS):
            await here.keeper.put(hook("http://127.0.0.1:1/", f"t{number}"))
        with pytest.raises(Conflict, match="at most 20"):
            await here.keeper.put(hook("http://127.0.0.1:1/", "more"))
        assert here.keeper.using("default", "key")[0] == "the notifications of t0"


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:1/", "https://[::1]:1/", "https://localhost:1/x", "http://10.0.0.1/"]
)
async def test_without_the_setting_this_machine_and_its_networks_get_nothing(tmp_path: Path, url: str) -> None:
    async with world(tmp_path, allow_private=False) as here:
        await here.keeper.put(hook(url))
        with pytest.raises(Unavailable, match=r"not an address of the public internet|URL is https"):
            await here.keeper.test("default", "ops")
        await here.keeper.put(parse("default", "m", {"mail": of_mail(1)}, allow_private=False))
        with pytest.raises(Unavailable, match="not an address of the public internet"):
            await here.keeper.test("default", "m")


def of_mail(port: int, **more: Any) -> dict[str, Any]:
    return {"server": f"127.0.0.1:{port}", "sender": "faas@example.com", "to": ["ops@example.com"], **more}


def text_of(came: Mail) -> str:
    return str(came.get_payload(decode=True), "utf-8")  # type: ignore[arg-type]


@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_mail_goes_encrypted_with_a_login_and_says_what_and_since_when(tmp_path: Path, security: str) -> None:
    async with mail_server(tmp_path, security, login=True) as server, world(tmp_path) as here:
        body = of_mail(server.port, security=security, user=USER, password_secret="password", ca=server.ca)
        await here.keeper.put(parse("default", "ops", {"mail": body}, allow_private=True))
        here.looked.wrong = [letter(), letter("other", Severity.CRITICAL)]
        await here.look()
        assert here.keeper.get("default", "ops").error == ""
        ((receivers, came),) = server.came
        assert (receivers, server.over_tls, set(server.logins)) == (["ops@example.com"], [True], {USER})
        assert came["Subject"] == "[faas] 2 firing: hello and 1 more"
        assert (came["From"], came["To"], came["Auto-Submitted"]) == (
            "faas@example.com", "ops@example.com", "auto-generated",
        )  # fmt: skip
        assert "WARNING  dead-letter hello: 1 event was given up" in text_of(came)
        assert "CRITICAL  dead-letter other" in text_of(came)
        assert PASSWORD not in str(came)


async def test_why_a_mail_server_takes_nothing_is_said_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mail_server(tmp_path, login=True) as server, world(tmp_path) as here:
        login = {"user": USER, "password_secret": "password"}

        async def error(**more: Any) -> str:
            await here.keeper.put(parse("default", "ops", {"mail": of_mail(server.port, **more)}, allow_private=True))
            with pytest.raises(Unavailable) as caught:
                await here.keeper.test("default", "ops")
            return caught.value.message

        assert "CERTIFICATE_VERIFY_FAILED" in await error(**login)
        assert "refuses the message" in await error(ca=server.ca)  # without a login
        assert "there is no secret gone" in await error(user=USER, password_secret="gone", ca=server.ca)
        monkeypatch.setitem(SECRETS, "password", "a-wrong-password")
        refused = await error(**login, ca=server.ca)
        assert "refuses the login: 535" in refused
        assert "wrong-password" not in refused
        monkeypatch.undo()
        server.refused = {"ops@example.com"}
        assert "refuses ops@example.com" in await error(**login, ca=server.ca)
        server.refused = {"gone@example.com"}
        part = await error(**login, ca=server.ca, to=["ops@example.com", "gone@example.com"])
        assert "refuses gone@example.com; the others have it" in part
        assert [receivers for receivers, _ in server.came] == [["ops@example.com"]]


async def test_a_server_without_starttls_gets_neither_login_nor_message(tmp_path: Path) -> None:
    async with mail_server(tmp_path, "none") as server, world(tmp_path) as here:
        body = of_mail(server.port, user=USER, password_secret="password")
        await here.keeper.put(parse("default", "ops", {"mail": body}, allow_private=True))
        with pytest.raises(Unavailable, match="STARTTLS"):
            await here.keeper.test("default", "ops")
        assert (server.came, server.logins) == ([], [])


async def test_a_mail_server_that_says_nothing_is_left_after_its_time(tmp_path: Path) -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    target = parse("default", "ops", {"mail": of_mail(port)}, allow_private=True)
    assert isinstance(target.way, ByMail)
    async with server:
        message = messages.test_message("ops", "x", 0.0)
        for seconds in (0.2, 1.0, 5.0):  # a busy machine may not even have connected
            with pytest.raises(Unavailable, match=re.escape(f"did not answer within {seconds:g} s")):
                await mails.send(target.way, None, message, 0.0, allow_private=True, seconds=seconds)
            if came.is_set():
                break
        async with asyncio.timeout(30):
            await gone.wait()
